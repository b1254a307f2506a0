-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local events = require "llm_cluster.events"

describe("lines of JSON", function()
    local splitter

    before_each(function()
        splitter = events.new("ndjson", "done", 1048576)
    end)

    it("come out whole, however they came in", function()
        local text, out = '{"a":1}\n{"b":2}\n{"done":true}\n', {}
        for i = 1, #text do
            local whole = splitter:feed(text:sub(i, i))
            assert.is_true(whole == "" or whole:sub(-1) == "\n", whole)
            out[#out + 1] = whole
        end
        assert.equal(text, table.concat(out))
        assert.is_true(splitter.complete)
    end)

    it("may be several at once, with the beginning of another", function()
        assert.equal("1\n2\n", splitter:feed("1\n2\n3"))
        assert.equal("3\n", splitter:feed("\n"))
        assert.equal("", splitter:finish())
    end)

    it("cost in proportion to their length", function()
        local piece, began = ("x"):rep(4096), os.clock()
        for _ = 1, 128 do
            assert.equal("", splitter:feed(piece))
        end
        assert.equal(128 * 4096 + 1, #splitter:feed("\n"))
        assert.is_true(os.clock() - began < 1, os.clock() - began)
    end)

    it("have a largest length", function()
        splitter = events.new("ndjson", "done", 100)
        assert.is_nil((splitter:feed(("x"):rep(101))))
    end)
end)
