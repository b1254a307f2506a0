-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local placement = require "llm_cluster.placement"

local function candidate(id, fields)
    local out = { peer = { id = id, slots = 4, weight = 1, backup = false }, busy = 0, up = true, drained = false }
    for key, value in pairs(fields or {}) do
        if out.peer[key] ~= nil then
            out.peer[key] = value
        else
            out[key] = value
        end
    end
    return out
end

local function chosen(...)
    local got, why = placement.choose({ ... }, placement.clock())
    return got and got.peer.id or why
end

describe("placement.choose", function()
    it("takes the least busy relative to slots and weight", function()
        assert.equal("b", chosen(candidate("a", { busy = 2 }), candidate("b", { busy = 1 })))
        assert.equal("b", chosen(candidate("a", { busy = 1, slots = 2 }), candidate("b", { busy = 2, slots = 8 })))
        assert.equal("a", chosen(candidate("a", { busy = 2, weight = 4 }), candidate("b", { busy = 1 })))
    end)

    it("never takes a full, drained, resting or failed peer", function()
        assert.equal("b", chosen(candidate("a", { busy = 4, weight = 1000 }), candidate("b", { busy = 3 })))
        assert.equal("b", chosen(candidate("a", { drained = true }), candidate("b", { busy = 3 })))
        assert.equal("b", chosen(candidate("a", { up = false }), candidate("b", { busy = 3 })))
        assert.equal("b", chosen(candidate("a", { resting = true }), candidate("b", { busy = 3 })))
        assert.equal("b", chosen(candidate("a", { avoid = true }), candidate("b", { busy = 3 })))
    end)

    it("says why there is none", function()
        assert.equal("out", chosen())
        assert.equal("out", chosen(candidate("a", { up = false }), candidate("b", { drained = true })))
        assert.equal("busy", chosen(candidate("a", { busy = 4 }), candidate("b", { up = false })))
        assert.equal("busy", chosen(candidate("a", { resting = true })))
        assert.equal("avoided", chosen(candidate("a", { avoid = true }), candidate("b", { up = false })))
        assert.equal("busy", chosen(candidate("a", { avoid = true }), candidate("b", { busy = 4 })))
    end)

    it("uses backups only when all others are out, drained or failed", function()
        local spare = candidate("spare", { backup = true })
        assert.equal("busy", chosen(candidate("a", { busy = 4 }), spare))
        assert.equal("busy", chosen(candidate("a", { resting = true }), spare))
        assert.equal("spare", chosen(candidate("a", { up = false }), spare))
        assert.equal("spare", chosen(candidate("a", { drained = true }), spare))
        assert.equal("spare", chosen(candidate("a", { avoid = true }), spare))
        assert.equal("a", chosen(candidate("a", { busy = 3 }), spare))
    end)

    it("ignores slots when none is taken", function()
        assert.equal("a", placement.choose({ candidate("a", { busy = 9 }) }, placement.clock(), true).peer.id)
    end)

    it("gives idle peers turns in proportion", function()
        local clock, counts = placement.clock(), {}
        local list = { candidate("a", { slots = 4 }), candidate("b", { slots = 2 }), candidate("c", { slots = 1, weight = 3 }) }
        for _ = 1, 900 do
            local id = placement.choose(list, clock).peer.id
            counts[id] = (counts[id] or 0) + 1
        end
        assert.same({ a = 400, b = 200, c = 300 }, counts)
    end)

    it("does not flood a newcomer", function()
        local clock = placement.clock()
        local old, new = candidate("old"), candidate("new")
        for _ = 1, 1000 do
            placement.choose({ old }, clock)
        end
        local counts = { old = 0, new = 0 }
        for _ = 1, 100 do
            local id = placement.choose({ old, new }, clock).peer.id
            counts[id] = counts[id] + 1
        end
        assert.is_true(counts.new <= 52 and counts.new >= 48)
    end)

    -- Property: whatever the peers' state, the choice is allowed and no allowed one is less busy.
    it("holds for random fleets", function()
        math.randomseed(3)
        for _ = 1, 5000 do
            local list = {}
            for i = 1, math.random(0, 6) do
                local slots = math.random(1, 4)
                list[i] = candidate("p" .. i, {
                    slots = slots, weight = math.random(1, 3), busy = math.random(0, slots), up = math.random() < 0.7,
                    drained = math.random() < 0.2, resting = math.random() < 0.1, avoid = math.random() < 0.1,
                    backup = math.random() < 0.3,
                })
            end
            local primary = false
            for _, c in ipairs(list) do
                primary = primary or c.up and not c.drained and not c.avoid and not c.peer.backup
            end
            local function allowed(c)
                return c.up and not c.drained and not c.avoid and not c.resting and c.busy < c.peer.slots
                    and not (primary and c.peer.backup)
            end
            local got = placement.choose(list, placement.clock())
            for _, c in ipairs(list) do
                if allowed(c) then
                    assert.is_table(got)
                    local function load(x) return x.busy / (x.peer.slots * x.peer.weight) end
                    assert.is_true(load(got) <= load(c))
                end
            end
            if got then
                assert.is_true(allowed(got))
            end
        end
    end)
end)
