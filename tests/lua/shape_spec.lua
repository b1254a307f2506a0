-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local request = require "llm_cluster.request"

local function shape(body)
    local parsed = assert(request.parse(type(body) == "string" and body or cjson.encode(body), {}))
    local got = request.shape(parsed)
    return got.messages, got.prompt_chars
end

describe("request.shape", function()
    local cases = {
        { "{}", 0, 0 },
        { '{"messages":[]}', 0, 0 },
        { '{"messages":[{"role":"user","content":"hello"}]}', 1, 5 },
        { '{"messages":[{"role":"system","content":"ab"},{"content":"cde","role":"user"}]}', 2, 5 },
        { '{"messages":[{"content":[{"type":"text","text":"ab"},{"type":"image_url","image_url":{"url":"data:xyz"}}]}]}', 1, 2 },
        { '{"messages":[{"content":[{"type":"tool_result","content":[{"type":"text","text":"abc"}]}]}]}', 1, 3 },
        { '{"messages":[{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{\\"content\\":1}"}}]}]}', 1, 0 },
        { '{"messages":[{"content":"a","images":["AAAA","BBBB"]}],"tools":[{"text":"no"}]}', 1, 1 },
        { '{"system":"abc","messages":[{"content":"d"}]}', 1, 4 },
        { '{"system":[{"type":"text","text":"abc"}],"messages":[{"content":"d"}]}', 1, 4 },
        { '{"prompt":"abc"}', 1, 3 },
        { '{"prompt":["abc","de"]}', 1, 5 },
        { '{"prompt":[101, 102,103]}', 1, 3 },
        { '{"prompt":[[101,102],[103]]}', 1, 3 },
        { '{"prompt":null}', 0, 0 },
        { '{"input":"abc","instructions":"de"}', 1, 5 },
        { '{"input":[{"role":"user","content":[{"text":"abc"}]},{"type":"function_call_output","output":"xy"}]}', 2, 5 },
        { '{"input":["abc","de"]}', 1, 5 },
        { ' { "messages" : [ { "content" : "a b" } , { "content" : [ { "text" : "c" } ] } ] } ', 2, 4 },
        -- Characters, not bytes
        { '{"prompt":"äöü€😀"}', 1, 5 },
        { '{"prompt":"12345678äöü€😀12345678é"}', 1, 22 },
        { '{"prompt":"a\\nb\\\\c\\"d"}', 1, 7 },
        { '{"prompt":"\\u00e4\\u20ac"}', 1, 2 },
        { '{"prompt":"\\ud83d\\ude00\\uD83D\\uDE00x"}', 1, 3 },
        { '{"prompt":"\\ud83d"}', 1, 1 },
        -- Nonsense counts as something
        { '{"messages":1}', 0, 0 },
        { '{"messages":"abc"}', 0, 3 },
        { '{"messages":[,{"content" "a"},,]}', 1, 1 },
        { '{"messages":{"content":"abc"}}', 0, 3 },
    }
    for _, case in ipairs(cases) do
        it("of " .. case[1], function()
            assert.same({ case[2], case[3] }, { shape(case[1]) })
        end)
    end

    -- Property: it agrees with a decoder.
    it("counts what a decoder finds", function()
        math.randomseed(13)
        local alphabet = { "a", "ä", "€", "😀", "\n", '"', "\\", "{", "]", " " }
        for _ = 1, 2000 do
            local want, messages = 0, {}
            local function text()
                local parts, count = {}, math.random(0, 30)
                for i = 1, count do
                    parts[i] = alphabet[math.random(#alphabet)]
                end
                want = want + count
                return table.concat(parts)
            end
            for i = 1, math.random(1, 6) do
                local content
                if math.random() < 0.5 then
                    content = text()
                else
                    content = {}
                    for at = 1, math.random(1, 3) do
                        content[at] = { type = "text", text = text(), url = "not counted" }
                    end
                end
                messages[i] = { role = "user", content = content, name = "not counted" }
            end
            assert.same({ #messages, want }, { shape { messages = messages, model = "not counted" } })
        end
    end)

    it("says what it counted so far after a million steps", function()
        assert.same({ 0, 500000 }, { shape('{"messages":[' .. ("1,"):rep(600000) .. "1]}") })
    end)

    it("takes any bytes, in bounds and in time", function()
        local long = 10000000
        for _, body in ipairs {
            '{"messages":' .. ("["):rep(199) .. ("]"):rep(199) .. "}",
            '{"prompt":"\\u"}', '{"prompt":"\\u12"}', '{"prompt":"x\\\\"}',
            '{"messages":[' .. ("{},"):rep(long / 3) .. "{}]}",
            '{"messages":[' .. ("1,"):rep(long / 2) .. "1]}",
            '{"messages":[' .. (" "):rep(long) .. "]}",
            '{"messages":["' .. ("\\\\"):rep(long / 2) .. '"]}',
            '{"messages":["' .. ("\\u1234"):rep(long / 6) .. '"]}',
            '{"messages":["' .. ("\195\164"):rep(long / 2) .. '"]}',
            '{"messages":["' .. ("\240\159\152\128"):rep(long / 4) .. '"]}',
            '{"messages":[' .. ('"",'):rep(long / 3) .. '""]}',
            '{"messages":[{"content":' .. ('{"content":'):rep(150) .. "1" .. ("}"):rep(150) .. "}]}",
        } do
            local parsed = assert(request.parse(body, {}))
            local started = os.clock()
            local got = request.shape(parsed)
            assert.is_true(os.clock() - started < 0.3, body:sub(1, 30))
            assert.is_true(got.messages >= 0 and got.prompt_chars >= 0)
        end
    end)
end)
