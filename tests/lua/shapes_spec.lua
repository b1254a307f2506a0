-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local errors = require "llm_cluster.errors"
local events = require "llm_cluster.events"
local json = require "llm_cluster.json"
local surface = require "llm_cluster.surface"

describe("errors", function()
    local err = errors.new(404, "model_not_found", 'no "x"\n', { param = "model" })

    it("have OpenAI's shape", function()
        assert.same({ error = { message = 'no "x"\n', type = "not_found_error", param = "model", code = "model_not_found" } },
            cjson.decode(errors.body(err, "openai")))
        assert.equal(cjson.null, cjson.decode(errors.body(errors.new(500, "x", "y"), "openai")).error.param)
    end)

    it("have the shape that other clients read", function()
        assert.same({ error = 'no "x"\n' }, cjson.decode(errors.body(err, "ollama")))
        assert.equal("error", cjson.decode(errors.body(err, "messages")).type)
    end)

    it("are one whole event of the stream's kind", function()
        for _, api in ipairs { "openai", "responses", "messages" } do
            local splitter = events.new("sse", "done", 1e6)
            local text = errors.event(err, api)
            assert.equal(text, splitter:feed(text))
            assert.equal("model_not_found", cjson.decode(text:match("data: (.*)\n\n$")).error.code)
        end
        assert.equal('no "x"\n', cjson.decode(errors.event(err, "ollama")).error)
        assert.is_truthy(errors.event(err, "ollama"):find("\n$"))
    end)
end)

describe("events", function()
    local streams = {
        { "sse", "done", 'data: {"a":"[DONE]\\n\\ndata: [DONE]"}\n\n: ping\n\ndata: {"b":1}\n\n', "data: [DONE]\n\n" },
        { "sse", "done", "data: 1\r\n\r\ndata: 2\r\n\r\n", "data: [DONE]\r\n\r\n" },
        { "sse", "done", "data: 1\n\n", 'data: {"error":{"message":"x"}}\n\n' },
        { "sse", "done", "data: 1\n\n", "data:[DONE]\n\n" },
        { "sse", "response", 'event: a\ndata: {"type":"x","t":"response.completed"}\n\n',
          'event: response.completed\ndata: {}\n\n' },
        { "sse", "response", "data: 1\n\n", 'data: {"type":"response.incomplete"}\n\n' },
        { "sse", "message", "event: ping\ndata: {\"m\":\"message_stop\"}\n\n", "event: message_stop\ndata: {}\n\n" },
        { "ndjson", nil, '{"c":"\\"done\\":true","done":false}\n{"x":{"done":true},"done":false}\n', '{"done":true}\n' },
        { "ndjson", nil, '{"done":false}\n', '{"done" : true, "done_reason":"stop"}\n' },
        { "ndjson", nil, '{"c":"\\"error\\""}\n', '{"error":"out of memory"}\n' },
    }
    for _, case in ipairs(streams) do
        local kind, marker, head, tail = case[1], case[2], case[3], case[4]
        -- However the bytes are cut: nothing is lost, only whole events come out, the end is seen at the end.
        it("splits anywhere: " .. head:gsub("%c", ".") .. tail:gsub("%c", "."), function()
            local text = head .. tail
            for size = 1, #text do
                local splitter = events.new(kind, marker, 1e6)
                local out = ""
                for from = 1, #text, size do
                    local whole = splitter:feed(text:sub(from, from + size - 1))
                    assert.is_true(whole == "" or whole:sub(-1) == "\n")
                    out = out .. whole
                    if #out <= #head then
                        assert.is_false(splitter.complete)
                    end
                end
                assert.equal(text, out .. splitter:finish())
                assert.is_true(splitter.complete)
                assert.is_true(splitter.real)
            end
        end)
    end

    it("forwards no half event and does not call it complete", function()
        local splitter = events.new("sse", "done", 1e6)
        assert.equal("data: 1\n\n", splitter:feed('data: 1\n\ndata: {"a":'))
        assert.equal("", splitter:finish())
        assert.is_false(splitter.complete)
    end)

    it("takes the end marker without its last line break", function()
        local splitter = events.new("sse", "done", 1e6)
        splitter:feed("data: [DONE]\n")
        assert.equal("data: [DONE]\n", splitter:finish())
        assert.is_true(splitter.complete)
    end)

    it("does not count comments as content", function()
        local splitter = events.new("sse", "done", 1e6)
        assert.equal(": ping\n\n", splitter:feed(": ping\n\n"))
        assert.is_false(splitter.real)
    end)

    it("bounds one event", function()
        local splitter = events.new("sse", "done", 100)
        assert.is_nil((splitter:feed("data: " .. ("x"):rep(200))))
    end)
end)

describe("surface", function()
    it("is exact", function()
        assert.equal("inference", surface.find("POST", "/v1/chat/completions").kind)
        assert.is_nil(surface.find("GET", "/v1/chat/completions"))
        assert.is_nil(surface.find("POST", "/v1/chat/completions/"))
        assert.is_nil(surface.find("POST", "/api/pull"))
        local route, name = surface.find("GET", "/v1/models/a/b:c")
        assert.equal("model", route.kind)
        assert.equal("a/b:c", name)
        assert.equal("health", surface.find("HEAD", "/health").kind)
    end)

    it("opens nothing without a key but /health", function()
        for key, route in pairs(surface.routes) do
            assert.equal(key == "GET /health", route.open == true, key)
        end
    end)
end)

describe("json", function()
    it("writes empty lists as lists", function()
        assert.same("[]", json.encode(json.list {}))
        local text = json.encode { a = json.list {}, b = json.list { 1 }, c = {} }
        assert.is_truthy(text:find('"a":[]', 1, true) and text:find('"b":[1]', 1, true) and text:find('"c":{}', 1, true), text)
    end)
end)
