-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Who goes where: which free peer takes a request, and which waiting request takes a free slot. Pure.
--
-- Peers that are equally good take turns in proportion to slots × weight: each pick moves a peer's tag on by 1/capacity, and the
-- lowest tag goes first (start-time fair queueing, Goyal, Vin and Cheng 1996). The clock holds newcomers back from taking
-- everything until they have caught up.
--
-- Of very many free peers as many are compared as make the best of them hardly worse than the best of all (the power of several
-- choices, Mitzenmacher 2001); where the next request goes on from there. So a request costs the same whatever the fleet's size.
--
-- A peer that is slow at present is a last resort: a request takes it once so many wait that holding them back costs more than
-- is lost there (a threshold, as in the slow-server problem, Lin and Kumar 1984), at the latest once it has waited as long as it
-- would lose there (the break-even rule of ski rental: at most twice the best possible in hindsight).
--
-- So is a peer that would read anew what a busy one holds, if a slot there is likely to be free sooner than that is read.
--
-- Requests that were at a peer when it died part ways for a moment: one of them may have killed it and kill the next one, and the
-- others should not be there when it does.
--
-- A request ("want"): {model, since = seconds, slotless = boolean, avoid = {peer id = true} or nil: peers that failed it,
--   preferred = {peer id = true} or nil: by its route, holders = {peer id = depth} or nil: who holds how much of its prefix,
--   saves = {peer id = seconds} or nil: how much sooner it has read the request than one that holds nothing of it,
--   has_fallback = boolean: another model may do,
--   suspect = seconds or nil: when a peer died with it in its hands}
-- The fleet: {now = seconds, policy, health = {peer id = {up, resting_until, lacks, cold, slow, turn, rate}},
--   drained = {peer id = true}, suspects = function(id) → suspect requests there, busy = function(id) → slots in use,
--   usable = function(peer, now) → slots that it may use now, queued = requests that wait for the same peers, with this one;
--   holding: choose() and may_take() keep something there, nil whenever health is new}

local M = {}

local APART = 1              -- seconds

local max, min = math.max, math.min
local ENOUGH = 16 -- free peers to compare
local AHEAD = 2 -- rounds of its slots that a peer's tag may run ahead, by requests that go back to a prefix

--- A clock for choose(); one per worker. start: the place in a long list behind which comparing begins.
function M.clock()
    return { now = 0, tags = {}, start = 0 }
end

--- Can the peer serve the request, now or later: neither out nor drained, and it has the model?
local function in_rotation(peer, want, fleet)
    local health = fleet.health[peer.id]
    return health and health.up and not fleet.drained[peer.id] and not (health.lacks and health.lacks[want.model])
end

local function avoids(want, peer)
    return want.avoid and want.avoid[peer.id]
end

--- Is it one of those that take the request by rights, now or later?
local function is_primary(peer, want, fleet)
    return not peer.backup and not avoids(want, peer) and in_rotation(peer, want, fleet)
end

--- Is one that is no backup in rotation? Busy is not out: as long as there is, backups take nothing.
local function has_primary(peers, want, fleet)
    for i = 1, #peers do
        if is_primary(peers[i], want, fleet) then
            return true
        end
    end
    return false
end

--- Must the request have a peer without another suspect?
function M.parts_ways(want, now)
    return want.suspect and now - want.suspect < APART or false
end

local function is_resting(health, fleet)
    return health.resting_until and health.resting_until > fleet.now
end

local function is_slow(peer, fleet)
    return (fleet.health[peer.id].slow or 0) > 0
end

--- What it costs to leave slow peers alone, in seconds that others wait longer in all: each one fewer in the queue lets a quick
-- peer serve all those behind it sooner, and those who come until the queue is empty; with room of the quick for so many more in
-- a second that is a queue's length over the room. Everything, once the quick alone cannot keep up; 0 if it isn't known.
local function cost_of_holding(peers, want, fleet)
    local room, known = 0, false
    for i = 1, #peers do
        local peer = peers[i]
        if is_primary(peer, want, fleet) then
            local health = fleet.health[peer.id]
            if health.turn and not is_slow(peer, fleet) and not is_resting(health, fleet) then
                room, known = room + fleet.usable(peer, fleet.now) / peer.slots / health.turn, true
            end
            room = room - (health.rate or 0)
        end
    end
    return known and (room > 0 and fleet.queued / room or math.huge) or 0
end

--- The same, worked out once for all that wait for the same peers.
local function holding_cost(peers, want, fleet)
    if want.avoid and next(want.avoid) then
        return cost_of_holding(peers, want, fleet)
    end
    local known = fleet.holding
    if not (known and known.peers == peers and known.model == want.model and known.queued == fleet.queued) then
        known = { peers = peers, model = want.model, queued = fleet.queued, cost = cost_of_holding(peers, want, fleet) }
        fleet.holding = known
    end
    return known.cost
end

--- How good the peer is for the request before load counts: higher is better, 7 best (5 where no peer is preferred).
local function tier(peer, want, fleet)
    local health = fleet.health[peer.id]
    return (is_slow(peer, fleet) and 0 or 4) + (want.preferred and want.preferred[peer.id] and 2 or 0)
        + (health.cold and health.cold[want.model] and 0 or 1)
end

--- Peers that it may pay to wait for, should they be full: those that hold a part of the request, where it is known how soon
-- a slot becomes free.
-- @return list, or nil if there are none
local function worth_waiting_for(peers, want, fleet)
    local saves, out = want.saves, nil
    for i = 1, saves and #peers or 0 do
        local peer = peers[i]
        if saves[peer.id] and is_primary(peer, want, fleet) and fleet.health[peer.id].turn then
            out = out or {}
            out[#out + 1] = peer
        end
    end
    return out
end

--- Seconds that the request waits for one of the others rather than take this peer: what it would lose here, as long as that is
-- more than the time in which a slot there becomes free on average.
-- @param others from worth_waiting_for()
local function patience(peer, others, want, fleet)
    local own, level, longest = want.saves[peer.id] or 0, tier(peer, want, fleet), 0
    for i = 1, #others do
        local other = others[i]
        local loss = want.saves[other.id] - own
        if loss > longest and loss > fleet.health[other.id].turn and tier(other, want, fleet) >= level then
            longest = loss
        end
    end
    return longest
end

--- Would it take this request now, if it has a free slot?
-- @param others from worth_waiting_for()
-- @param holding from holding_cost(), if there is a slow peer
local function is_open(peer, others, holding, want, fleet)
    local health = fleet.health[peer.id]
    return not is_resting(health, fleet)
        and not (is_slow(peer, fleet) and max(fleet.now - want.since, holding) < health.slow)
        and not (M.parts_ways(want, fleet.now) and fleet.suspects(peer.id) > 0)
        and not (others and fleet.now - want.since < patience(peer, others, want, fleet))
end

--- Choose a peer with a free slot.
-- @param peers list of {id, slots, weight, backup}: those that may take the request
-- @param clock from clock(), changed by a pick
-- @return the peer; or nil and "busy" (wait), "avoided" (only peers that failed this request are left) or "out" (no peer is in
--   rotation)
function M.choose(peers, want, fleet, clock)
    local primary, any, avoided = false, false, false
    for i = 1, #peers do
        local peer = peers[i]
        if in_rotation(peer, want, fleet) then
            if avoids(want, peer) then
                avoided = true
            else
                any = true
                if not peer.backup then
                    primary = true
                    break
                end
            end
        end
    end
    if not any then
        return nil, avoided and "avoided" or "out"
    end
    local by_load = fleet.policy ~= "weighted_round_robin"
    local holders = fleet.policy == "affinity" and want.holders or nil
    local others = worth_waiting_for(peers, want, fleet)
    local holding
    local best, best_tier, best_depth, best_load, best_tag
    local all, top, compared, enough = #peers, want.preferred and 7 or 5, 0, false
    local start = all > ENOUGH and clock.start or 0
    for step = 1, all do
        local at = (start + step - 1) % all + 1
        local peer = peers[at]
        local id = peer.id
        if (not enough or holders[id]) and in_rotation(peer, want, fleet) and not avoids(want, peer)
            and not (primary and peer.backup)
        then
            holding = holding or is_slow(peer, fleet) and holding_cost(peers, want, fleet)
            local busy = fleet.busy(id)
            if (want.slotless or busy < fleet.usable(peer, fleet.now)) and is_open(peer, others, holding, want, fleet) then
                local level, depth = tier(peer, want, fleet), holders and holders[id] or 0
                local load = by_load and busy / (peer.slots * peer.weight) or 0
                local tag = max(clock.tags[id] or 0, clock.now)
                local better = not best
                if not better then
                    if level ~= best_tier then
                        better = level > best_tier
                    elseif depth ~= best_depth then
                        better = depth > best_depth
                    elseif load ~= best_load then
                        better = load < best_load
                    else
                        better = tag < best_tag
                    end
                end
                if better then
                    best, best_tier, best_depth, best_load, best_tag = peer, level, depth, load, tag
                end
                compared = compared + 1
                if not enough and compared >= ENOUGH and best_tier >= top then
                    enough, clock.start = true, at
                    if not holders then
                        break
                    end
                end
            end
        end
    end
    if not best then
        return nil, "busy"
    end
    local tag = best_tag + 1 / (best.slots * best.weight)
    if best_depth == 0 then
        clock.now = best_tag
    else
        -- Who goes back to a prefix takes nobody's turn: so new conversations begin where fewer requests went of late.
        tag = min(tag, max(best_tag, clock.now + AHEAD))
    end
    clock.tags[best.id] = tag
    return best
end

--- May this request take a slot of this peer now?
-- @param peers list: all peers that may take the request
function M.may_take(peer, peers, want, fleet)
    return in_rotation(peer, want, fleet) and not avoids(want, peer)
        and is_open(peer, worth_waiting_for(peers, want, fleet),
            is_slow(peer, fleet) and holding_cost(peers, want, fleet), want, fleet)
        and not (peer.backup and has_primary(peers, want, fleet))
end

--- Choose which waiting request takes a slot of a peer: the oldest, unless one of the others fits the peer better and the oldest
-- has not waited too long yet.
-- @param peer the peer with the free slot
-- @param waiting list of requests that may take it, oldest first, not empty
-- @param most_wait seconds after which the oldest goes first whatever the others have
-- @return position in the list
function M.pick(peer, waiting, fleet, most_wait)
    if #waiting == 1 or fleet.now - waiting[1].since > most_wait then
        return 1
    end
    local best, best_tier, best_depth
    for i = 1, #waiting do
        local want = waiting[i]
        local level = tier(peer, want, fleet)
        local depth = fleet.policy == "affinity" and want.holders and want.holders[peer.id] or 0
        if not best or level > best_tier or level == best_tier and depth > best_depth then
            best, best_tier, best_depth = i, level, depth
        end
    end
    return best
end

return M
