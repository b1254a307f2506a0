-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The last minutes, for the live page: every STEP seconds a point with all sums so far, and each peer's load.
--
-- Requests write nothing here: what happened between two points is the difference of their sums. Each second one worker
-- (whoever comes first) looks at the slots in use and the queue. A peer's load is like a machine's load average: slots in use,
-- averaged over the last minute with older seconds counting less.

local cjson = require "cjson.safe"

local metrics = require "llm_cluster.metrics"
local peers = require "llm_cluster.peers"
local queue = require "llm_cluster.queue"
local slots = require "llm_cluster.slots"

local M = {}

local DICT = "llm_metrics"
local TICK = 1          -- seconds
local STEP = 10         -- seconds between two points
local WINDOW = 900      -- seconds that are kept
local LOAD_OVER = 60    -- seconds
local MINUTE = 60
M.WINDOW = WINDOW

--- What the difference of two points says.
-- @param from, to {at = seconds, sums by name (metrics.totals)}; sums that went back were started anew
-- @return {requests_per_minute, answered_per_minute, latency, first_byte (mean seconds), timed_out, failed, hits, cached
--   (shares), tokens_per_second}; means and shares are nil where nothing happened
function M.between(from, to)
    local seconds = math.max(to.at - from.at, 0.001)
    local fresh = (to.requests or 0) < (from.requests or 0)
    local function grown(name)
        return (to[name] or 0) - (fresh and 0 or from[name] or 0)
    end
    local function per(name, base)
        local n = grown(base)
        return n > 0 and grown(name) / n or nil
    end
    local placed = grown("hits") + grown("misses")
    return {
        requests_per_minute = grown("requests") / seconds * 60, answered_per_minute = grown("answered") / seconds * 60,
        latency = per("duration", "answered"), first_byte = per("first_byte", "answered"),
        timed_out = per("timed_out", "requests"), failed = per("failed", "requests"),
        tokens_per_second = grown("completion_tokens") / seconds, hits = placed > 0 and grown("hits") / placed or nil,
        cached = per("cached_tokens", "prompt_tokens"),
    }
end

--- The points still kept, oldest first, then what is now.
-- @param now {at, sums, waiting, busy}
function M.points(now)
    local d, out = ngx.shared[DICT], {}
    local last = math.floor(now.at / STEP)
    local start = d:get("@start")
    if start and start >= now.at - WINDOW then
        out[1] = { at = start } -- all sums were 0
    end
    for n = last - WINDOW / STEP, last do
        local point = cjson.decode(d:get("@" .. n) or "null")
        if type(point) == "table" then
            out[#out + 1] = point
        end
    end
    out[#out + 1] = now
    return out
end

--- Sums and states at this moment, as a point has them.
function M.now()
    local point = metrics.totals()
    point.at, point.waiting, point.busy = ngx.now(), (queue.length()), 0
    local view = peers.view()
    for _, peer in ipairs(view and view.peers or {}) do
        point.busy = point.busy + slots.busy(peer.id)
    end
    return point
end

--- The newest point that is a minute old, else the oldest.
local function a_minute_ago(points)
    local now, from = points[#points], points[1]
    for _, point in ipairs(points) do
        if point.at <= now.at - MINUTE then
            from = point
        end
    end
    return from
end

--- What changed in the last minute, or since there are points.
function M.last_minute(points)
    return M.between(a_minute_ago(points), points[#points])
end

--- The same for each peer, by its name: of the requests that it was the last to hold. Empty if it can't be told.
function M.last_minute_of_peers(points)
    local from, now, out = a_minute_ago(points), points[#points], {}
    local before = {} -- at the start all sums were 0
    if from.requests then
        before = cjson.decode(ngx.shared[DICT]:get("@peers:" .. math.floor(from.at / STEP)) or "null")
        if type(before) ~= "table" then
            return out
        end
    end
    local view = peers.view()
    for _, peer in ipairs(view and view.peers or {}) do
        local was, is = before[peer.name] or {}, metrics.peer_totals(peer.name)
        was.at, is.at = from.at, now.at
        out[peer.name] = M.between(was, is)
    end
    return out
end

--- Slots in use on a peer, averaged over the last minute.
function M.load(id)
    return ngx.shared[DICT]:get("@load:" .. id) or 0
end

--- Each peer's sums, for its last minute.
local function sums_of_peers(view)
    local out = {}
    for _, peer in ipairs(view and view.peers or {}) do
        out[peer.name] = metrics.peer_totals(peer.name)
    end
    return out
end

local function look(d, now)
    local old = d:get("@at") or now - TICK
    d:set("@at", now)
    local share = 1 - math.exp(-math.max(now - old, 0) / LOAD_OVER)
    local view = peers.view()
    for _, peer in ipairs(view and view.peers or {}) do
        local key = "@load:" .. peer.id
        local load = d:get(key) or 0
        d:set(key, load + (slots.busy(peer.id) - load) * share, LOAD_OVER * 10)
    end
    -- The longest queue between two points: a short jam shall show.
    d:set("@waiting", math.max(d:get("@waiting") or 0, (queue.length())))
    local n = math.floor(now / STEP)
    if not d:get("@" .. n) then
        local point = M.now()
        point.waiting = d:get("@waiting")
        d:delete("@waiting")
        d:set("@" .. n, cjson.encode(point), WINDOW + 2 * STEP)
        d:set("@peers:" .. n, cjson.encode(sums_of_peers(view)), MINUTE + 3 * STEP)
        d:flush_expired() -- a dict gives their room back only when it needs it, and then takes other things, too
    end
end

local function tick(premature)
    local d = ngx.shared[DICT]
    if not premature and d:add("@tick", true, TICK * 0.9) then
        look(d, ngx.now())
    end
end

--- Start in this worker. A worker that ends stops by itself; the new ones go on.
function M.start()
    ngx.shared[DICT]:add("@start", ngx.now()) -- a reload keeps the sums, and this
    assert(ngx.timer.every(TICK, tick))
end

return M
