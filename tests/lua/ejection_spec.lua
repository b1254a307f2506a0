-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local ejection = require "llm_cluster.ejection"

local LIMITS = { hold_down = 4, hold_down_max = 60 }

describe("ejection.hold_down", function()
    it("lets a peer that went out once come back at once, and doubles from then on", function()
        local times = {}
        for flaps = 1, 7 do
            times[flaps] = ejection.hold_down(flaps, 0, LIMITS)
        end
        assert.same({ 0, 4, 8, 16, 32, 60, 60 }, times)
    end)

    it("holds down at least as long as requests ask for", function()
        assert.equal(4, ejection.hold_down(1, 4, LIMITS))
        assert.equal(4, ejection.hold_down(2, 4, LIMITS))
        assert.equal(8, ejection.hold_down(3, 4, LIMITS))
    end)

    it("never holds down less than hold_down for its maximum", function()
        assert.equal(10, ejection.hold_down(3, 0, { hold_down = 10, hold_down_max = 5 }))
    end)
end)

describe("ejection.is_failing", function()
    it("needs the failures close together", function()
        assert.is_true(ejection.is_failing(3, 30, 0, 30))
        assert.is_false(ejection.is_failing(3, 30.1, 0, 30))
        assert.is_true(ejection.is_failing(3, 30.1, 0, 31))
    end)

    it("does not acquit a peer that fails every second request, but one that fails one in a hundred", function()
        assert.is_true(ejection.is_failing(3, 5, 3, 30))
        assert.is_true(ejection.is_failing(3, 5, 27, 30))
        assert.is_false(ejection.is_failing(3, 5, 28, 30))
        assert.is_false(ejection.is_failing(3, 5, 300, 30))
    end)
end)

describe("ejection.is_needed", function()
    local function fleet(count, models)
        local by_model, all = {}, {}
        for i = 1, count do
            all[i] = { id = i, models = models or { "m" } }
        end
        by_model.m = all
        return all, by_model
    end

    local function needed(count, out)
        local all, by_model = fleet(count)
        return ejection.is_needed(all[1], by_model, function(peer) return peer.id > 1 and peer.id <= out + 1 end)
    end

    it("keeps the last one, and never lets more than half go", function()
        assert.is_true(needed(1, 0))
        assert.is_false(needed(2, 0))
        assert.is_true(needed(2, 1))
        assert.is_false(needed(3, 0))
        assert.is_true(needed(3, 1))
        assert.is_false(needed(10, 4))
        assert.is_true(needed(10, 5))
    end)

    it("looks at each of its models", function()
        local all, by_model = fleet(4, { "m", "rare" })
        by_model.rare = { all[1] }
        assert.is_true(ejection.is_needed(all[1], by_model, function() return false end))
    end)

    it("holds whatever order peers fail in", function()
        math.randomseed(7)
        for _ = 1, 200 do
            local count = math.random(1, 12)
            local all, by_model = fleet(count)
            local out, number = {}, 0
            for _ = 1, 40 do
                local peer = all[math.random(count)]
                if not out[peer.id] and not ejection.is_needed(peer, by_model, function(p) return out[p.id] end) then
                    out[peer.id], number = true, number + 1
                end
            end
            assert.is_true(number * 2 <= count)
            assert.is_true(count == 1 or number > 0)
        end
    end)
end)

describe("ejection.opened", function()
    it("opens slots one after the other", function()
        local open = {}
        for i, since in ipairs { 0, 2.4, 2.5, 5, 7.5, 100 } do
            open[i] = ejection.opened(4, since, 10)
        end
        assert.same({ 1, 1, 2, 3, 4, 4 }, open)
    end)

    it("never opens less than one", function()
        assert.equal(1, ejection.opened(8, -1, 10), "a clock that was set back")
    end)
end)
