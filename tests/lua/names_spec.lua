-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local names = require "llm_cluster.names"

local file = assert(io.open("tests/fixtures/routes.json"))
local fixture = cjson.decode(file:read("*a"))
file:close()

describe("names.matches", function()
    for _, case in ipairs(fixture.globs) do
        it(case.glob .. (case.matches and " fits " or " does not fit ") .. case.text, function()
            assert.equal(case.matches, names.matches(names.compile(case.glob), case.text))
        end)
    end

    it("takes any of a list, and nothing of an empty one", function()
        local compiled = names.compile { "a", "b*", "*c" }
        for _, name in ipairs { "a", "b", "bx", "c", "xc" } do
            assert.is_true(names.matches(compiled, name))
        end
        for _, name in ipairs { "", "ax", "xb", "cx" } do
            assert.is_false(names.matches(compiled, name))
        end
        assert.is_false(names.matches(names.compile {}, "a"))
    end)

    -- Property: it agrees with the obvious recursive definition.
    it("agrees with a plain definition", function()
        local function fits(glob, name)
            if glob == "" then
                return name == ""
            elseif glob:sub(1, 1) == "*" then
                return fits(glob:sub(2), name) or name ~= "" and fits(glob, name:sub(2))
            end
            return glob:sub(1, 1) == name:sub(1, 1) and fits(glob:sub(2), name:sub(2))
        end
        math.randomseed(3)
        local function text(alphabet, most)
            local parts = {}
            for i = 1, math.random(0, most) do
                local at = math.random(#alphabet)
                parts[i] = alphabet:sub(at, at)
            end
            return table.concat(parts)
        end
        for _ = 1, 20000 do
            local glob, name = text("ab**", 6), text("ab", 8)
            if glob ~= "" then
                assert.equal(fits(glob, name), names.matches(names.compile(glob), name), glob .. " " .. name)
            end
        end
    end)

    it("is not slowed down by many stars", function()
        local compiled = names.compile(("*a"):rep(60) .. "b")
        local name = ("a"):rep(100000)
        local started = os.clock()
        assert.is_false(names.matches(compiled, name))
        assert.is_true(os.clock() - started < 0.05)
    end)
end)

describe("names.matches_model", function()
    it("takes NAME and NAME:latest for one", function()
        assert.is_true(names.matches_model(names.compile "phi3", "phi3:latest"))
        assert.is_true(names.matches_model(names.compile "phi3:latest", "phi3"))
        assert.is_false(names.matches_model(names.compile "phi3:mini", "phi3"))
        assert.is_false(names.matches_model(names.compile "phi3", "phi3:mini"))
    end)
end)
