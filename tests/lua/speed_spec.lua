-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local speed = require "llm_cluster.speed"

--- A record of n answers that took a mean time, give or take a spread.
local function record(n, mean, spread, group, weight)
    local sums = { n, 0, 0, n * (weight or 1) }
    for i = 1, n do
        local value = mean + (spread or 0) * (n > 1 and 2 * (i - 1) / (n - 1) - 1 or 0)
        sums[2], sums[3] = sums[2] + value, sums[3] + value * value
    end
    return { at = 0, span = 30, groups = { [group or "first\tm\t10"] = sums } }
end

local function others(n, ...)
    local out = {}
    for i = 1, n do
        out[i] = record(...)
    end
    return out
end

--- The verdict on a peer among others.
local function judge(peer, rest)
    local all = { peer }
    for _, other in ipairs(rest) do
        all[#all + 1] = other
    end
    return speed.judge(peer, speed.means(all))
end

local function near(expected, found)
    assert.is_true(math.abs(expected - found) < 1e-6, expected .. " is not " .. tostring(found))
end

describe("speed.judge", function()
    it("finds who needs five times as long, and what that costs", function()
        local pace, extra = judge(record(5, 1), others(9, 20, 0.2))
        near(0.2, pace)
        near(0.8, extra)
    end)

    it("compares with the median: one slow peer doesn't hide another", function()
        local rest = others(5, 20, 0.2)
        rest[6] = record(20, 10)
        near(0.2, (judge(record(8, 1), rest)))
        near(1, (judge(record(8, 0.2), rest)))
    end)

    it("compares with the others only, whatever their number and order", function()
        math.randomseed(3)
        for _ = 1, 300 do
            local n, all, rest = math.random(1, 9), {}, {}
            for i = 1, n do
                all[i] = record(9, math.random(1, 5))
                rest[i] = all[i].groups["first\tm\t10"][2] / 9
            end
            local own = record(9, math.random(1, 5))
            table.sort(rest)
            local middle = (rest[math.floor((n + 1) / 2)] + rest[math.ceil((n + 1) / 2)]) / 2
            local mean = own.groups["first\tm\t10"][2] / 9
            near(math.min(1, middle / mean), (judge(own, all)))
        end
    end)

    it("says nothing without five samples of the peer and of another", function()
        assert.is_nil(judge(record(4, 1), others(9, 20, 0.2)))
        assert.is_nil(judge(record(20, 1), others(9, 4, 0.2)))
        assert.is_nil(judge(record(20, 1), {}))
        assert.is_nil(judge({ at = 0, groups = {} }, others(9, 20, 0.2)))
    end)

    it("compares only the like", function()
        assert.is_nil(judge(record(20, 5, 0, "first\tm\t14"), others(9, 20, 0.2, 0, "first\tm\t8")))
        assert.is_nil(judge(record(20, 5, 0, "first\tbig\t8"), others(9, 20, 0.2, 0, "first\tsmall\t8")))
    end)

    it("doesn't take noise or milliseconds for slowness", function()
        near(1, (judge(record(5, 0.5, 0.45), others(9, 20, 0.24))))
        near(0.24 / 0.5, (judge(record(60, 0.5, 0.45), others(9, 20, 0.24))))
        local pace, extra = judge(record(50, 0.01), others(9, 50, 0.001))
        assert.same({ 1, 0 }, { pace, extra })
    end)

    it("judges tokens by what an answer loses", function()
        -- 20 tokens an answer: 0.01 s more for each is 0.2 s.
        near(0.5, (judge(record(8, 0.02, 0, "token\tm", 20), others(3, 8, 0.01, 0, "token\tm", 20))))
        near(1, (judge(record(8, 0.002, 0, "token\tm", 20), others(3, 8, 0.001, 0, "token\tm", 20))))
    end)

    it("takes the worse of first byte and tokens, and its loss from the first byte", function()
        local peer, other = record(8, 0.3), record(8, 0.2)
        peer.groups["token\tm"] = record(8, 0.1, 0, "x", 20).groups.x
        other.groups["token\tm"] = record(8, 0.02, 0, "x", 20).groups.x
        local pace, extra = judge(peer, { other })
        near(0.2, pace)
        near(0.1, extra)
    end)
end)

describe("speed.merge", function()
    it("adds up", function()
        local merged = speed.merge(nil, { g = { 2, 3, 5, 2 } }, 100)
        assert.same({ at = 100, span = 0.5, groups = { g = { 2, 3, 5, 2 } } }, merged)
        merged = speed.merge(merged, { g = { 1, 1, 1, 1 }, h = { 1, 2, 4, 1 } }, 100)
        assert.same({ at = 100, span = 0.5, groups = { g = { 3, 4, 6, 3 }, h = { 1, 2, 4, 1 } } }, merged)
    end)

    it("changes neither of the two", function()
        local added = { g = { 1, 1, 1, 1 } }
        local merged = speed.merge(nil, added, 0)
        speed.merge(merged, added, 0)
        assert.same({ g = { 1, 1, 1, 1 } }, added)
        assert.same({ g = { 1, 1, 1, 1 } }, merged.groups)
    end)

    it("fades with age, keeps the mean, and forgets in the end", function()
        local merged = speed.merge({ at = 0, span = 30, groups = { g = { 10, 5, 3, 10 } } }, {}, 30)
        near(10 / math.exp(1), merged.groups.g[1])
        near(0.5, merged.groups.g[2] / merged.groups.g[1])
        assert.same({}, speed.merge(merged, {}, 600).groups)
    end)

    it("weighs what came in the last half minute at a steady rate", function()
        local merged
        for second = 0, 600, 6 do
            merged = speed.merge(merged, { g = { 1, 0.2, 0.04, 1 } }, second)
        end
        assert.is_true(math.abs(merged.groups.g[1] - 5) < 0.6, tostring(merged.groups.g[1]))
    end)

    it("sees within seconds that a peer became slow", function()
        local merged, other
        for second = 1, 120 do
            merged = speed.merge(merged, { ["whole\tm"] = { 2, 0.4, 0.08, 2 } }, second)
            other = speed.merge(other, { ["whole\tm"] = { 2, 0.4, 0.08, 2 } }, second)
        end
        local after = 0
        repeat
            after = after + 1
            merged = speed.merge(merged, { ["whole\tm"] = { 1, 1, 1, 1 } }, 120 + after)
            other = speed.merge(other, { ["whole\tm"] = { 2, 0.4, 0.08, 2 } }, 120 + after)
        until (judge(merged, { other })) < 0.5 or after > 60
        assert.is_true(after <= 20, after .. " s")
    end)
end)

--- A record of several groups: {group = {n, mean, spread, weight}}.
local function records_of(groups)
    local out = { at = 0, span = 30, groups = {} }
    for group, each in pairs(groups) do
        out.groups[group] = record(each[1], each[2], each[3], group, each[4]).groups[group]
    end
    return out
end

describe("speed.held", function()
    it("is what an answer takes on average, streamed or not", function()
        near(2, speed.held(record(5, 2)))
        near(0.5 + 20 * 0.1, speed.held(records_of { ["first\tm\t10"] = { 8, 0.5 }, ["token\tm"] = { 8, 0.1, 0, 20 } }))
        near(1.5, speed.held(records_of { ["whole\tm\t10\t3"] = { 8, 1 }, ["whole\tm\t12\t3"] = { 8, 2 } }))
    end)

    it("says nothing about less than five answers", function()
        assert.is_nil(speed.held(record(4, 2)))
    end)

    it("says how many answers come in a second, from the first second on", function()
        local merged
        for second = 1, 200 do
            merged = speed.merge(merged, { ["whole\tm\t10\t3"] = { 4, 1, 1, 4 } }, second)
            local _, rate = speed.held(merged)
            assert.is_true(second < 4 or math.abs(rate - 4) < 1, second .. ": " .. tostring(rate))
        end
        for _, after in ipairs { 0, 30 } do
            local _, rate = speed.held(speed.merge(merged, {}, 200 + after))
            assert.is_true(math.abs(rate - 4 * math.exp(-after / 30)) < 0.2, tostring(rate))
        end
    end)
end)

describe("speed.reading", function()
    local BYTE = 1e-4

    --- As an engine would be that reads a byte in BYTE seconds.
    local function reader(spread, per_class)
        local groups = {}
        for class = 8, 12 do
            groups["first\tm\t" .. class] = { per_class or 6, 0.2 + BYTE * 1.5 * 2 ^ class, spread }
            groups["whole\tm\t" .. class .. "\t5"] = { per_class or 6, 3 + BYTE * 1.5 * 2 ^ class, spread }
        end
        groups["token\tm"] = { 30, 0.05, 0, 40 }
        groups["first\tm\t?"] = { 30, 9 }
        return records_of(groups)
    end

    it("is how much later the first byte comes per byte to be read, over all peers and kinds of answers", function()
        near(BYTE, speed.reading({ reader() }).m)
        near(BYTE, speed.reading({ reader(0.05), reader(0.05) }).m)
    end)

    it("says nothing where it is in doubt", function()
        assert.same({}, speed.reading({}))
        assert.same({}, speed.reading({ record(50, 2) }), "one size only")
        assert.same({}, speed.reading({ reader(3) }), "noise")
        assert.same({}, speed.reading({ reader(0, 0.5) }), "few answers")
        assert.same({}, speed.reading({ records_of { ["first\tm\t9"] = { 9, 2 }, ["first\tm\t12"] = { 9, 1 } } }), "sooner")
    end)

    it("is known for each model by itself", function()
        local both = reader()
        both.groups["first\tn\t9"] = { 9, 18, 36, 9 }
        both.groups["first\tn\t12"] = { 9, 18, 36, 9 }
        local found = speed.reading({ both })
        near(BYTE, found.m)
        assert.is_nil(found.n)
    end)
end)
