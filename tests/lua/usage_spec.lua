-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local usage = require "llm_cluster.usage"

describe("usage.find", function()
    local cases = {
        { "OpenAI's chat",
          '{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":12,"completion_tokens":5,"total_tokens":17,'
          .. '"prompt_tokens_details":{"cached_tokens":4}}}',
          { prompt = 12, completion = 5, cached = 4 } },
        { "spaces and line breaks", '{ "usage" : {\n "completion_tokens" : 5,\n "prompt_tokens":12 } }',
          { prompt = 12, completion = 5 } },
        { "embeddings", '{"data":[[0.1]],"usage":{"prompt_tokens":3,"total_tokens":3}}', { prompt = 3 } },
        { "a stream's last events, the report before the end marker",
          'data: {"choices":[{"delta":{}}],"usage":null}\n\n'
          .. 'data: {"choices":[],"usage":{"completion_tokens":7,"prompt_tokens":2}}\n\ndata: [DONE]\n\n',
          { prompt = 2, completion = 7 } },
        { "llama.cpp's timings when no usage was asked for",
          'data: {"choices":[],"timings":{"cache_n":10,"prompt_n":3,"prompt_ms":1.5,"predicted_n":8}}\n\ndata: [DONE]\n\n',
          { prompt = 13, completion = 8, cached = 10 } },
        { "usage before timings",
          '{"usage":{"prompt_tokens":1,"completion_tokens":2},"timings":{"prompt_n":9,"predicted_n":9}}',
          { prompt = 1, completion = 2 } },
        { "Responses",
          'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":36,'
          .. '"input_tokens_details":{"cached_tokens":30},"output_tokens":87,"output_tokens_details":'
          .. '{"reasoning_tokens":1}}}}\n\n',
          { prompt = 36, completion = 87, cached = 30 } },
        { "Anthropic's messages",
          '{"usage":{"input_tokens":5,"cache_read_input_tokens":20,"cache_creation_input_tokens":2,"output_tokens":9}}',
          { prompt = 27, completion = 9, cached = 20 } },
        { "Ollama", '{"done":false}\n{"done":true,"prompt_eval_count":26,"prompt_eval_duration":1,"eval_count":298}\n',
          { prompt = 26, completion = 298 } },
        { "no report", '{"choices":[]}', nil },
        { "nothing", "", nil },
        { "null", '{"usage":null}', nil },
        { "an empty report", '{"usage":{}}', nil },
        { "a report cut off", '{"usage":{"prompt_tokens":12', nil },
        { "nonsense", '{"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":-1}}', nil },
        { "words that look like a report", '{"content":"\\"usage\\":{\\"prompt_tokens\\":1,\\"completion_tokens\\":1}"}', nil },
        { "a tool call that looks like one",
          '{"tool":{"usage":{"prompt_tokens":1,"completion_tokens":1}},"usage":{"prompt_tokens":5,"completion_tokens":6}}',
          { prompt = 5, completion = 6 } },
    }
    for _, case in ipairs(cases) do
        it("reads " .. case[1], function()
            assert.same(case[3], usage.find(case[2]))
        end)
    end

    it("adds what a stream said first", function()
        local first = usage.find('event: message_start\ndata: {"message":{"usage":{"input_tokens":25,"output_tokens":1}}}\n\n')
        assert.same({ prompt = 25, completion = 15 },
            usage.find('event: message_delta\ndata: {"usage":{"output_tokens":15}}\n\n', first))
        assert.equal(first, usage.find("event: message_stop\ndata: {}\n\n", first))
    end)

    it("is not slowed down by reports that never end", function()
        for _, piece in ipairs { '"usage":{', '"timings":{"usage":{', '"usage":' .. (" "):rep(40) } do
            local text = piece:rep(math.floor(65536 / #piece))
            local began = os.clock()
            assert.is_nil(usage.find(text))
            assert.is_true(os.clock() - began < 0.02)
        end
    end)

    it("looks at the ends of a long text only", function()
        local report = '"usage":{"prompt_tokens":3,"completion_tokens":4}'
        local long = ("1.25,"):rep(100000)
        assert.same({ prompt = 3, completion = 4 }, usage.find("{" .. report .. long .. "}"))
        assert.same({ prompt = 3, completion = 4 }, usage.find("{" .. long .. report .. "}"))
        assert.is_nil(usage.find("{" .. long .. report .. long .. "}"))
    end)
end)
