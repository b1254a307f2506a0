-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local labels = require "llm_cluster.labels"

local file = assert(io.open("tests/fixtures/routes.json"))
local fixture = cjson.decode(file:read("*a"))
file:close()

describe("labels.compile", function()
    for _, case in ipairs(fixture.conditions) do
        it("label " .. cjson.encode(case.label) .. ", condition " .. cjson.encode(case.condition), function()
            local test = assert(labels.compile(case.condition))
            assert.equal(case.holds, test(case.label))
        end)
    end

    for _, condition in ipairs(fixture.bad_conditions) do
        it("refuses " .. cjson.encode(condition), function()
            local test, err = labels.compile(condition)
            assert.is_nil(test)
            assert.is_string(err)
        end)
    end

    it("never holds for a label that is an object or null", function()
        local test = labels.compile ">=0"
        assert.is_false(test({ a = 1 }))
        assert.is_false(test(cjson.null))
        assert.is_false(labels.compile "null"(cjson.null))
    end)
end)
