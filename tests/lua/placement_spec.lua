-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local placement = require "llm_cluster.placement"

local PEER = { slots = true, weight = true, backup = true }
local WANT = { avoid = "avoid", preferred = "preferred", depth = "holders", saves = "saves" }

--- A peer and its state: busy, up, drained, resting, slow, cold, lacks, turn, rate; avoid, preferred, depth, saves say what the
-- request makes of it.
local function candidate(id, fields)
    local out = { peer = { id = id, slots = 4, weight = 1, backup = false }, busy = 0, up = true }
    for key, value in pairs(fields or {}) do
        if PEER[key] then
            out.peer[key] = value
        else
            out[key] = value
        end
    end
    return out
end

--- The three things that placement wants: peers, request, fleet.
local function scene(list, fields)
    fields = fields or {}
    local peers, want = {}, { model = "m", since = 100 - (fields.waited or 0), slotless = fields.slotless }
    local fleet = { now = 100, policy = fields.policy or "affinity", health = {}, drained = {} }
    local busy = {}
    for i, c in ipairs(list) do
        local id = c.peer.id
        peers[i] = c.peer
        busy[id] = c.busy
        fleet.health[id] = {
            up = c.up, resting_until = c.resting and 101 or nil, slow = c.slow or 0, cold = c.cold and { m = true } or nil,
            lacks = c.lacks and { m = true } or nil, turn = c.turn, rate = c.rate,
        }
        fleet.drained[id] = c.drained
        for name, where in pairs(WANT) do
            if c[name] then
                want[where] = want[where] or {}
                want[where][id] = c[name]
            end
        end
    end
    fleet.busy = function(id) return busy[id] end
    fleet.suspects = function(id) return fields.suspects == id and 1 or 0 end
    want.suspect = fields.suspects and 100 - (fields.apart or 0)
    fleet.usable = function(peer) return peer.slots end
    fleet.queued = fields.queued or 1
    return peers, want, fleet
end

local function choose(list, clock, fields)
    local peers, want, fleet = scene(list, fields)
    return placement.choose(peers, want, fleet, clock or placement.clock())
end

local function chosen(...)
    local got, why = choose({ ... })
    return got and got.id or why
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
        assert.equal("a", choose({ candidate("a", { busy = 9 }) }, nil, { slotless = true }).id)
    end)

    it("takes the peer that holds most of the prefix, however busy", function()
        local list = { candidate("a"), candidate("b", { busy = 3, depth = 2 }), candidate("c", { busy = 2, depth = 5 }) }
        assert.equal("c", choose(list).id)
        assert.equal("a", choose(list, nil, { policy = "least_busy" }).id)
        assert.equal("a", choose(list, nil, { policy = "weighted_round_robin" }).id)
        assert.equal("b", chosen(list[1], list[2], candidate("c", { busy = 4, depth = 5 })))
    end)

    it("ranks what the route prefers above what holds a prefix, and both above nothing", function()
        assert.equal("b", chosen(candidate("a", { depth = 9 }), candidate("b", { preferred = true, busy = 3 })))
        assert.equal("a", chosen(candidate("a", { depth = 9 }), candidate("b", { preferred = true, busy = 4 })))
        assert.equal("b", chosen(candidate("a", { cold = true }), candidate("b", { busy = 3 })))
    end)

    it("passes over a peer that lacks the model", function()
        assert.equal("b", chosen(candidate("a", { lacks = true }), candidate("b", { busy = 3 })))
        assert.equal("out", chosen(candidate("a", { lacks = true })))
    end)

    it("takes a slow peer only after a wait as long as the loss there", function()
        local slow, full = candidate("slow", { slow = 2 }), candidate("full", { busy = 4 })
        assert.equal("busy", chosen(slow, full))
        assert.equal("slow", choose({ slow, full }, nil, { waited = 2 }).id)
        assert.equal("b", choose({ slow, candidate("b", { busy = 3 }) }, nil, { waited = 9 }).id)
    end)

    it("takes a slow peer at once when holding all back that wait costs more", function()
        local slow = candidate("slow", { slow = 3 })
        local full, unknown = candidate("full", { busy = 4, turn = 1 }), candidate("unknown", { busy = 4 })
        local function goes(queued, ...)
            return choose({ slow, ... }, nil, { queued = queued }) ~= nil
        end
        assert.is_false(goes(2, full), "nobody else comes: a second for each")
        assert.is_true(goes(3, full))
        local other = candidate("other", { busy = 4, turn = 1, rate = 1 })
        assert.is_false(goes(2, full, other), "room for one more in a second")
        assert.is_true(goes(3, full, other))
        slow.rate = 0.5
        assert.is_false(goes(1, full, other), "what the slow one takes now would come, too")
        assert.is_true(goes(2, full, other))
        slow.rate = 1
        assert.is_true(goes(1, full, other), "the quick ones alone cannot keep up")
        slow.rate = 0
        assert.is_false(goes(1000, unknown), "nothing is known of how long it takes")
        assert.is_true(goes(3, full, candidate("drained", { turn = 0.01, drained = true })))
        assert.is_true(goes(3, full, candidate("backup", { turn = 0.01, backup = true })))
        assert.is_true(goes(3, full, candidate("slow, too", { turn = 0.01, slow = 3, busy = 4 })))
    end)

    it("waits for who holds the prefix as long as reading it takes, if a slot there is likely to be free sooner", function()
        local function holder(fields)
            local out = { busy = 4, depth = 9, saves = 2, turn = 1 }
            for key, value in pairs(fields or {}) do
                out[key] = value
            end
            return candidate("holder", out)
        end
        local other = candidate("other")
        assert.equal("busy", chosen(other, holder()))
        assert.equal("other", choose({ other, holder() }, nil, { waited = 2 }).id)
        assert.equal("holder", chosen(other, holder { busy = 3 }))
        for what, state in pairs {
            ["a slot there takes longer to become free"] = { turn = 2 },
            ["nothing is known about that"] = { turn = false },
            ["it is out"] = { up = false }, ["it is drained"] = { drained = true }, ["it failed the request"] = { avoid = true },
            ["it is slow"] = { slow = 1 }, ["it is a backup"] = { backup = true },
        } do
            assert.equal("other", chosen(other, holder(state)), what)
        end
        assert.equal("other", chosen(candidate("other", { preferred = true }), holder()), "the route goes first")
        assert.equal("other", chosen(candidate("other", { depth = 5, saves = 1.5 }), holder()), "it saves half a second only")
        assert.equal("busy", chosen(candidate("other", { depth = 1, saves = 0.5 }), holder()))
    end)

    it("keeps requests apart that were at a peer when it died", function()
        local list = { candidate("a", { depth = 3 }), candidate("b", { busy = 3 }) }
        assert.equal("b", choose(list, nil, { suspects = "a" }).id)
        assert.is_nil((choose({ list[1] }, nil, { suspects = "a" })))
        assert.equal("a", choose({ list[1] }, nil, { suspects = "a", apart = 1 }).id)
    end)

    it("takes turns by weight alone when told to", function()
        local clock, counts = placement.clock(), { a = 0, b = 0 }
        local list = { candidate("a", { busy = 3 }), candidate("b", { weight = 3 }) }
        for _ = 1, 400 do
            local id = choose(list, clock, { policy = "weighted_round_robin" }).id
            counts[id] = counts[id] + 1
        end
        assert.same({ a = 100, b = 300 }, counts)
    end)

    it("gives idle peers turns in proportion", function()
        local clock, counts = placement.clock(), {}
        local list = { candidate("a", { slots = 4 }), candidate("b", { slots = 2 }), candidate("c", { slots = 1, weight = 3 }) }
        for _ = 1, 900 do
            local id = choose(list, clock).id
            counts[id] = (counts[id] or 0) + 1
        end
        assert.same({ a = 400, b = 200, c = 300 }, counts)
    end)

    it("begins new conversations where fewer requests went, but not for long", function()
        for _, more in ipairs { 3, 1000 } do
            local clock = placement.clock()
            for _ = 1, more do
                choose({ candidate("a", { depth = 5 }), candidate("b") }, clock)
            end
            local counts = { a = 0, b = 0 }
            for _ = 1, 20 do
                local got = choose({ candidate("a"), candidate("b") }, clock)
                counts[got.id] = counts[got.id] + 1
            end
            assert.is_true(counts.b > counts.a)
            assert.is_true(counts.a >= 6, counts.a)
        end
    end)

    describe("among many peers", function()
        local list, looks, clock

        --- Choose for one more request, with the peers' state as it is in the list.
        local function next_one(fields)
            local peers, want, fleet = scene(list, fields)
            local busy = fleet.busy
            fleet.busy = function(id)
                looks = looks + 1
                return busy(id)
            end
            return placement.choose(peers, want, fleet, clock)
        end

        before_each(function()
            list, looks, clock = {}, 0, placement.clock()
            for i = 1, 1000 do
                list[i] = candidate("p" .. i)
            end
        end)

        it("compares some of those that are free, and all get their turn", function()
            local counts = {}
            for _ = 1, 2000 do
                local id = next_one().id
                counts[id] = (counts[id] or 0) + 1
            end
            assert.is_true(looks <= 2000 * 64)
            for i = 1, 1000 do
                assert.is_true((counts["p" .. i] or 0) <= 4, i)
            end
            local used = 0
            for _ in pairs(counts) do
                used = used + 1
            end
            assert.is_true(used > 800, used)
        end)

        it("finds the one that has a free slot, holds the prefix, is preferred, or is not slow", function()
            for _, c in ipairs(list) do
                c.busy = 4
            end
            list[777].busy = 3
            assert.equal("p777", next_one().id)
            for _, c in ipairs(list) do
                c.busy = 0
            end
            list[500].depth = 2
            assert.equal("p500", next_one().id)
            assert.equal("p500", next_one().id)
            list[500].depth, list[600].preferred = nil, true
            assert.equal("p600", next_one().id)
            list[600].preferred = nil
            for i, c in ipairs(list) do
                c.slow = i ~= 123 and 1 or 0
            end
            assert.equal("p123", next_one().id)
        end)
    end)

    it("does not flood a newcomer", function()
        local clock = placement.clock()
        local old, new = candidate("old"), candidate("new")
        for _ = 1, 1000 do
            choose({ old }, clock)
        end
        local counts = { old = 0, new = 0 }
        for _ = 1, 100 do
            local id = choose({ old, new }, clock).id
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
            local primary, by_id = false, {}
            for _, c in ipairs(list) do
                by_id[c.peer.id] = c
                primary = primary or c.up and not c.drained and not c.avoid and not c.peer.backup
            end
            local function allowed(c)
                return c.up and not c.drained and not c.avoid and not c.resting and c.busy < c.peer.slots
                    and not (primary and c.peer.backup)
            end
            local got = choose(list, nil, { policy = "least_busy" })
            for _, c in ipairs(list) do
                if allowed(c) then
                    assert.is_table(got)
                    local function load(x) return x.busy / (x.peer.slots * x.peer.weight) end
                    assert.is_true(load(by_id[got.id]) <= load(c))
                end
            end
            if got then
                assert.is_true(allowed(by_id[got.id]))
            end
        end
    end)
end)

describe("placement.pick", function()
    local peer = { id = "p", slots = 4, weight = 1 }

    local function waiting(...)
        local out = {}
        for i, fields in ipairs { ... } do
            out[i] = { model = "m", since = 100 - (fields.waited or 0), holders = fields.depth and { p = fields.depth } or nil,
                preferred = fields.preferred and { p = true } or nil }
        end
        return out
    end

    local function pick(list, policy)
        return placement.pick(peer, list, { now = 100, policy = policy or "affinity", health = { p = { up = true } } }, 2)
    end

    it("takes the oldest when nothing tells them apart", function()
        assert.equal(1, pick(waiting({ waited = 1 }, {}, {})))
        assert.equal(1, pick(waiting({ waited = 1, depth = 3 }, { depth = 3 })))
    end)

    it("takes the one with the longest prefix there", function()
        assert.equal(3, pick(waiting({ waited = 1 }, { depth = 2 }, { depth = 7 })))
        assert.equal(1, pick(waiting({ waited = 1 }, { depth = 2 }), "least_busy"))
    end)

    it("takes one whose route prefers the peer first", function()
        assert.equal(2, pick(waiting({ depth = 8 }, { preferred = true })))
    end)

    it("lets nobody starve", function()
        assert.equal(1, pick(waiting({ waited = 2.1 }, { depth = 9 })))
        assert.equal(2, pick(waiting({ waited = 1.9 }, { depth = 9 })))
    end)
end)

describe("placement.may_take", function()
    it("keeps backups, failed, resting and drained peers out", function()
        local function may(list, fields)
            local peers, want, fleet = scene(list, fields)
            return placement.may_take(peers[1], peers, want, fleet) and true or false
        end
        assert.is_true(may { candidate("a", { busy = 4 }) })
        assert.is_false(may { candidate("a", { drained = true }) })
        assert.is_false(may { candidate("a", { resting = true }) })
        assert.is_false(may { candidate("a", { avoid = true }) })
        assert.is_false(may { candidate("a", { slow = 1 }) })
        assert.is_true(may({ candidate("a", { slow = 1 }) }, { waited = 1 }))
        assert.is_false(may { candidate("a"), candidate("b", { busy = 4, saves = 1, turn = 0.5 }) })
        assert.is_true(may({ candidate("a"), candidate("b", { busy = 4, saves = 1, turn = 0.5 }) }, { waited = 1 }))
        assert.is_false(may { candidate("a", { backup = true }), candidate("b", { busy = 4 }) })
        assert.is_true(may { candidate("a", { backup = true }), candidate("b", { up = false }) })
    end)
end)
