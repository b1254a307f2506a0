-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Which free peer takes a request: the least busy one relative to its slots and weight. Pure.
--
-- Peers that are equally busy take turns in proportion to slots × weight: each pick moves a peer's tag on by 1/capacity, and the
-- lowest tag goes first. The clock holds newcomers back from taking everything until they have caught up.

local M = {}

--- A clock for choose(); one per worker.
function M.clock()
    return { now = 0, tags = {} }
end

--- Usable now or later: neither out nor drained.
local function in_rotation(candidate)
    return candidate.up and not candidate.drained
end

--- Choose among candidates.
-- @param candidates list of {peer = {id, slots, weight, backup}, busy = n, up, drained, resting, avoid: booleans}; resting: it
--   said it is busy; avoid: it already failed this very request
-- @param clock from clock(), changed by a pick
-- @param ignore_slots boolean: the request takes no slot
-- @return the chosen candidate; or nil and "busy" (wait), "avoided" (only peers that failed this request are left) or "out" (no
--   peer is in rotation)
function M.choose(candidates, clock, ignore_slots)
    local primary, any, avoided = false, false, false
    for _, candidate in ipairs(candidates) do
        if in_rotation(candidate) then
            if candidate.avoid then
                avoided = true
            else
                any = true
                primary = primary or not candidate.peer.backup
            end
        end
    end
    if not any then
        return nil, avoided and "avoided" or "out"
    end
    local best, best_load, best_tag
    for _, candidate in ipairs(candidates) do
        local peer = candidate.peer
        if in_rotation(candidate) and not candidate.avoid and not candidate.resting
            and (ignore_slots or candidate.busy < peer.slots)
            -- Busy is not out: while one primary is in rotation, backups take nothing.
            and not (primary and peer.backup)
        then
            local capacity = peer.slots * peer.weight
            local load = candidate.busy / capacity
            local tag = math.max(clock.tags[peer.id] or 0, clock.now)
            if not best or load < best_load or (load == best_load and tag < best_tag) then
                best, best_load, best_tag = candidate, load, tag
            end
        end
    end
    if not best then
        return nil, "busy"
    end
    clock.now = best_tag
    clock.tags[best.peer.id] = best_tag + 1 / (best.peer.slots * best.peer.weight)
    return best
end

return M
