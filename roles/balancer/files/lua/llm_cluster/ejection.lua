-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- When failures of requests take a peer out, for how long it stays out, and how it comes back. Pure.

local M = {}

local FAILING_SHARE = 0.1    -- who fails fewer of its requests than this isn't ejected for it: each costs one retry

--- Seconds to stay out. The first time a peer may come back as soon as it answers probes; later each time twice as long.
-- @param flaps ejections of late, with this one
-- @param least seconds, also at the first
-- @param limits {hold_down, hold_down_max}
function M.hold_down(flaps, least, limits)
    local seconds = flaps > 1 and limits.hold_down * 2 ^ (flaps - 2) or 0
    return math.min(math.max(seconds, least), math.max(limits.hold_down_max, limits.hold_down))
end

--- Are these failures enough? Success doesn't wipe them out, or a peer that fails every second request would stay. But a busy
-- peer that fails one in a hundred isn't ejected either: nine times as many successes since the first of them acquit it.
-- @param failures how many, the number that is needed
-- @param seconds from the first of them to the last
-- @param successes since the first of them
-- @param window seconds in which failures add up
function M.is_failing(failures, seconds, successes, window)
    return seconds <= window and successes <= failures / FAILING_SHARE - failures
end

--- Would more than half of the peers of one of its models be out without it? Then failures of requests don't eject it: better
-- some errors than a rush at the few that are left, who may fail for the same reason.
-- @param peer {id, models}
-- @param by_model {name = list of peers}
-- @param is_out function(peer) → boolean
function M.is_needed(peer, by_model, is_out)
    for _, model in ipairs(peer.models) do
        local list, out = by_model[model] or {}, 1
        for _, other in ipairs(list) do
            if other.id ~= peer.id and is_out(other) then
                out = out + 1
            end
        end
        if out * 2 > #list then
            return true
        end
    end
    return false
end

--- Slots of a peer that came back: one, and one more each time that a slot's share of the time passed.
-- @param slots all of them
-- @param since seconds that it has been back
-- @param return_time seconds, above 0
function M.opened(slots, since, return_time)
    return math.max(1, math.min(slots, 1 + math.floor(since * slots / return_time)))
end

return M
