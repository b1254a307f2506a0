-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Which peers may be used and how much: what probes and requests found out, the same in every worker.
--
-- In: a new peer at its first good probe, an ejected one after `probe_successes` in a row, not before its hold-down passed. After
-- that its slots open one after the other over `return_time`.
-- Out: after `probe_failures` in a row, or at once when a connection is refused. Also after `passive_failures` requests that
-- failed there within `passive_window` and succeeded elsewhere, but never more than half of a model's peers that way. Whoever
-- goes out again soon is held down, twice as long each time.
-- Saying "busy" (503, 429) is no failure: it rests a moment. Nor is being slow: it keeps its slots, needed at full load,
-- but requests that can soon have another peer wait for that (placement.lua).
--
-- All of it lies in the shared dict, a few keys for each peer. Their sum, what a request must know, is the snapshot: each worker
-- makes it anew only when the number `health_version` moved on.

local ejection = require "llm_cluster.ejection"
local metrics = require "llm_cluster.metrics"
local peers = require "llm_cluster.peers"
local prober = require "llm_cluster.prober"
local speed = require "llm_cluster.speed"

local M = {}

local DICT = "llm_state"
local FLAP_MEMORY = 120      -- seconds after a hold-down in which another ejection counts as flapping
local LEAST_REST, MOST_REST = 0.2, 5 -- seconds that a peer's own Retry-After can ask for
local SUSPICION = 1          -- seconds that a failure counts for which nobody knows yet whose fault it was
local SUSPECT_RESTS = 0.5    -- seconds
local LEAVES_SLOW = 1.25     -- times slow_share: a peer at the edge doesn't go to and fro
local SLOW_MEMORY = 120      -- seconds that a slow peer stays one without anything new measured
local SPEED_MEMORY = 120     -- seconds that the time to read a byte counts without anything new measured
local NAMES = { [0] = "probing", [1] = "up", [2] = "down" }
local PROBING, UP, DOWN = 0, 1, 2
local REFUSED = "connection refused"

local KEYS = {
    "health", "why", "since", "failures", "successes", "flaps", "hold", "resting", "returned", "lacks", "cold", "slow", "judged",
    "good", "strikes", "spared", "suspected", "checked", "canary", "broke", "turn", "rate",
}

local function dict()
    return ngx.shared[DICT]
end

--- Something in the snapshot changed.
local function changed(d)
    d:incr("health_version", 1, 0)
end

--- The peer's health: "probing" (not known yet), "up" or "down".
function M.state(id)
    return NAMES[dict():get("health:" .. id) or PROBING]
end

function M.is_up(id)
    return dict():get("health:" .. id) == UP
end

function M.is_down(id)
    return dict():get("health:" .. id) == DOWN
end

--- Why it is as it is, since when (seconds since the epoch), and until when it is held down (or nil).
function M.why(id)
    local d = dict()
    return d:get("why:" .. id), d:get("since:" .. id), d:get("hold:" .. id)
end

--- Forget a peer that left the table.
function M.forget(id)
    local d = dict()
    for _, key in ipairs(KEYS) do
        d:delete(key .. ":" .. id)
    end
    speed.forget(id)
    changed(d)
end

-- Changes of state

--- Change a peer's state. Only one of the workers that want to does it, so that each change is counted and logged once.
-- @param prepare function(d, before), called before the change is seen; returns further words for the log
-- @return boolean
local function change(peer, state, why, prepare)
    local d, id = dict(), peer.id
    local key, mutex = "health:" .. id, "changing:" .. id
    if d:get(key) == state or not d:add(mutex, true, 1) then
        return false
    end
    local before = d:get(key) or PROBING
    if before ~= state then
        local words = prepare and prepare(d, before) or ""
        d:delete("failures:" .. id)
        d:delete("successes:" .. id)
        d:delete("strikes:" .. id)
        d:set("why:" .. id, why)
        d:set("since:" .. id, ngx.now())
        d:set(key, state)
        changed(d)
        ngx.log(ngx.WARN, "peer ", id, " is ", NAMES[state], ": ", why, words)
        if before == UP and state == DOWN then
            metrics.event("ejection", peer.name, why)
        elseif before == DOWN and state == UP then
            metrics.event("return", peer.name, why)
        end
    end
    d:delete(mutex)
    return before ~= state
end

--- Take a peer out. Planned restarts happen under a drain mark: they are no flapping.
-- @param least seconds to stay out, or nil
local function eject(peer, why, least)
    local id, view = peer.id, peers.view()
    local done = change(peer, DOWN, why, function(d, before)
        speed.forget(id)
        d:delete("slow:" .. id)
        d:delete("returned:" .. id)
        if before ~= UP or not view or peers.is_drained(view, peer) then
            return ""
        end
        local flaps = (d:get("flaps:" .. id) or 0) + 1
        local hold = ejection.hold_down(flaps, least or 0, view.limits)
        d:set("flaps:" .. id, flaps, FLAP_MEMORY + hold)
        if hold == 0 then
            return ""
        end
        d:set("hold:" .. id, ngx.now() + hold, hold)
        return "; held down " .. hold .. " s"
    end)
    if not done and M.is_down(id) then
        dict():set("why:" .. id, why)
    end
end

local function take_back(peer, why)
    change(peer, UP, why, function(d, before)
        local view = peers.view()
        d:delete("canary:" .. peer.id)
        if before == DOWN and view and not peers.is_drained(view, peer) then
            d:set("returned:" .. peer.id, ngx.now())
        end
    end)
end

-- What probes find

--- A connection was refused: nothing listens there.
function M.refused(peer)
    eject(peer, REFUSED)
end

--- Is it out because nothing listens there? Then what it held has broken off, whether or not that was noticed yet.
function M.is_dead(id)
    local d = dict()
    return d:get("health:" .. id) == DOWN and d:get("why:" .. id) == REFUSED
end

--- The peer failed once (could not be reached, did not answer a probe).
function M.failed(peer, why, limits)
    local id, d = peer.id, dict()
    d:delete("successes:" .. id)
    local failures = d:incr("failures:" .. id, 1, 0)
    if failures >= limits.probe_failures then
        eject(peer, why)
    elseif not d:get("health:" .. id) then
        d:set("why:" .. id, why)
    end
end

--- The peer answered a probe.
function M.succeeded(peer, limits)
    local id, d = peer.id, dict()
    local state = d:get("health:" .. id) or PROBING
    if state == UP then
        d:delete("failures:" .. id)
    elseif state == PROBING then
        take_back(peer, "first probe answered")
    else
        local successes = d:incr("successes:" .. id, 1, 0)
        if successes >= limits.probe_successes and not d:get("hold:" .. id) then
            take_back(peer, successes .. " probes answered")
        end
    end
end

--- Which of its models the peer doesn't have, and which are not loaded.
-- @param what "lacks" or "cold"
-- @param models list of names in the table's order; empty: none
function M.found(peer, what, models)
    local d, key = dict(), what .. ":" .. peer.id
    local text = models[1] and table.concat(models, "\n") or nil
    if d:get(key) == text then
        return
    end
    d:set(key, text)
    changed(d)
    if what == "lacks" then
        ngx.log(ngx.WARN, "peer ", peer.id, text and " lacks: " .. table.concat(models, ", ") or " has all of its models")
    end
end

--- The canary failed: out, until a canary succeeds.
function M.canary_failed(peer, why)
    dict():set("canary:" .. peer.id, true)
    eject(peer, why)
end

--- Is it out for its canary, so that an answered probe isn't enough?
function M.needs_canary(id)
    return dict():get("canary:" .. id) == true
end

-- What requests find

local function rest(d, id, seconds)
    d:set("resting:" .. id, ngx.now() + seconds, seconds)
    changed(d)
end

--- It said that it is busy: let it rest.
-- @param seconds how long by its own word, or nil
function M.busy(peer, seconds)
    local view = peers.view()
    seconds = seconds and math.min(seconds, MOST_REST) or view and view.limits.busy_rest or 0
    rest(dict(), peer.id, math.max(LEAST_REST, seconds)) -- never none: the request would ask again at once
end

function M.is_resting(id)
    return dict():get("resting:" .. id) ~= nil
end

--- A request failed there for which the peer is to blame.
local function strike(peer, why)
    local view = peers.view()
    if not view then
        return
    end
    local d, id, limits, now = dict(), peer.id, view.limits, ngx.now()
    if d:get("health:" .. id) ~= UP then
        return
    end
    local most, list, good = limits.passive_failures, "strikes:" .. id, d:get("good:" .. id) or 0
    local length, oldest = d:lpush(list, now .. " " .. good), nil
    if not length then
        return
    end
    while length >= most do
        oldest, length = d:rpop(list), length - 1
    end
    local at, good_then = (oldest or ""):match("^(%S+) (%S+)$")
    if not at or not ejection.is_failing(most, now - at, good - good_then, limits.passive_window) then
        return
    end
    -- One such ejection at a time over all workers, or two could together take more than half.
    if not d:add("ejecting", true, 1) then
        return
    end
    local needed = ejection.is_needed(peer, view.by_model, function(other)
        return d:get("health:" .. other.id) == DOWN or peers.is_drained(view, other)
    end)
    if not needed then
        eject(peer, most .. " requests failed, the last one: " .. why, limits.hold_down)
    elseif d:add("spared:" .. id, true, limits.passive_window) then
        ngx.log(ngx.WARN, "peer ", id, " stays though requests fail there, as too few would be left: ", why)
    end
    d:delete("ejecting")
end

--- A connection broke with a request in the peer's hands, which may be dying of it: for a moment it still takes connections.
function M.broke(peer)
    dict():set("broke:" .. peer.id, true, SUSPICION)
end

function M.may_be_dying(id)
    return dict():get("broke:" .. id) ~= nil
end

--- A request failed at the peer; whether that is the peer's fault shows elsewhere, which takes a moment. Meanwhile a peer that
-- fails fast would look idle and draw one request after the other: with as many open cases as eject it, it gets no more. And it
-- is probed at once: mostly it is dead. To be followed by blame(), garbage() or acquit().
function M.suspect(peer)
    local d, id, view = dict(), peer.id, peers.view()
    if not view or d:get("health:" .. id) ~= UP then
        return
    end
    local cases = d:incr("suspected:" .. id, 1, 0, SUSPICION)
    if cases and cases >= view.limits.passive_failures then
        rest(d, id, SUSPECT_RESTS)
    end
    if d:add("checked:" .. id, true, SUSPICION) then
        prober.check(peer, view.limits, M)
    end
end

--- The case is closed: the request succeeded nowhere, so it may be the request's fault.
function M.acquit(peer)
    local d, key = dict(), "suspected:" .. peer.id
    local cases = d:incr(key, -1)
    if cases and cases <= 0 then
        d:delete(key)
    end
end

--- A request failed at the peer (5xx, silence, a connection that closed) and has succeeded elsewhere. Once per request and peer.
-- @param model name
function M.blame(peer, why, model)
    M.acquit(peer)
    strike(peer, why .. " (model " .. model .. ")")
end

--- The peer sent something that is no HTTP answer. Its fault, whether the request succeeds elsewhere or not.
function M.garbage(peer, why)
    M.acquit(peer)
    strike(peer, why)
end

--- A request succeeded at the peer.
-- @param first seconds from giving it the request to the first byte of its answer; of an answer that isn't streamed, to its end
-- @param tokens of the answer, or nil
-- @param decode seconds from the first byte to the last of a stream; nil: it was not streamed
-- @param model name
-- @param size bytes of the prompt that the peer had to read (without a prefix it is thought to hold), or nil
function M.measured(peer, first, tokens, decode, model, size)
    local id = peer.id
    dict():incr("good:" .. id, 1, 0)
    if first then
        speed.add(id, model or "", size, first, tokens, decode)
    end
end

--- Note how long the peers' slots are held, how many answers they give, and how long reading takes.
-- @param holding, reading what speed.judge_all() returned
local function note_times(d, holding, reading)
    local function note(key, value)
        local known = d:get(key)
        if not known or math.abs(value - known) > known / 10 then
            d:set(key, value)
            changed(d)
        end
    end
    for _, each in ipairs(holding) do
        note("turn:" .. each.peer.id, each.held / each.peer.slots)
        note("rate:" .. each.peer.id, each.rate)
    end
    for model, seconds in pairs(reading) do
        d:set("reading:" .. model, seconds, SPEED_MEMORY)
    end
end

--- Seconds that the engines take to read one byte of a prompt for a model, or nil if that isn't known.
function M.reading(model)
    return dict():get("reading:" .. model)
end

--- Judge who is slow, and how long what takes. Called by one worker, now and then.
-- @param view from peers.view()
function M.judge(view)
    local d, now, share = dict(), ngx.now(), view.limits.slow_share
    local verdicts, holding, reading = speed.judge_all(view)
    note_times(d, holding, reading)
    for _, verdict in ipairs(verdicts) do
        local id, pace = verdict.peer.id, verdict.pace
        local slow = d:get("slow:" .. id)
        local known = slow and tonumber(slow:match("^%S+"))
        if pace < share or known and pace < share * LEAVES_SLOW then
            if not known or math.abs(pace - known) > known / 4 then
                d:set("slow:" .. id, pace .. " " .. verdict.extra)
                changed(d)
            end
            d:set("judged:" .. id, now, SLOW_MEMORY)
            if not known then
                ngx.log(ngx.WARN, "peer ", id, " is slow: ", math.floor(pace * 100), " % of the others' speed")
                metrics.event("slow", verdict.peer.name)
            end
        elseif known then
            d:delete("judged:" .. id)
        end
    end
    for _, peer in ipairs(view.peers) do
        local id = peer.id
        if d:get("slow:" .. id) and not d:get("judged:" .. id) then
            d:delete("slow:" .. id)
            changed(d)
            ngx.log(ngx.WARN, "peer ", id, " is not slow any more, or nothing was measured for long")
        end
    end
end

-- The snapshot

local entries, returning = {}, {}
local known_version, known_view

local function set_of(text)
    if not text then
        return nil
    end
    local out = {}
    for name in text:gmatch("[^\n]+") do
        out[name] = true
    end
    return out
end

local function entry_of(d, peer, return_time)
    local id = peer.id
    local state = d:get("health:" .. id)
    local returned = state == UP and return_time > 0 and d:get("returned:" .. id) or nil
    local slow = d:get("slow:" .. id)
    return {
        up = state == UP, down = state == DOWN, resting_until = d:get("resting:" .. id), usable = peer.slots,
        slow = slow and tonumber(slow:match("%S+$")) or 0,
        lacks = set_of(d:get("lacks:" .. id)), cold = set_of(d:get("cold:" .. id)),
        slots = peer.slots, returned = returned, return_time = return_time, turn = d:get("turn:" .. id),
        rate = d:get("rate:" .. id),
    }
end

local function opened(entry, now)
    return ejection.opened(entry.slots, now - entry.returned, entry.return_time)
end

--- Who came back and has no settled peer of its models beside it gets all its slots at once: nobody else could take the load.
local function settle(view, now)
    local settled = {}
    for _, peer in ipairs(view.peers) do
        local entry = entries[peer.id]
        if entry.up and not peers.is_drained(view, peer) and (not entry.returned or opened(entry, now) == entry.slots) then
            for _, model in ipairs(peer.models) do
                settled[model] = true
            end
        end
    end
    for _, peer in ipairs(view.peers) do
        local entry, beside = entries[peer.id], false
        if entry.returned then
            for _, model in ipairs(peer.models) do
                beside = beside or settled[model]
            end
            if beside then
                returning[#returning + 1] = entry
            else
                entry.returned = nil
            end
        end
    end
end

--- What is known about all peers.
-- @return {peer id = {up, down: booleans; resting_until: ngx.now() value or nil; usable: slots that it may use now; slow: 0, or
--   the seconds that it needs longer than others to the first byte; lacks, cold: sets of models, or nil; turn: seconds in which
--   one of its slots becomes free on average while all are in use, or nil; rate: answers per second of late, or nil}}; don't keep
--   it
function M.snapshot()
    local d, view = dict(), peers.view()
    local version = d:get("health_version")
    if version ~= known_version or view ~= known_view then
        known_version, known_view, entries, returning = version, view, {}, {}
        for _, peer in ipairs(view and view.peers or {}) do
            entries[peer.id] = entry_of(d, peer, view.limits.return_time)
        end
        if view then
            settle(view, ngx.now())
        end
    end
    if returning[1] then
        local now = ngx.now()
        for i = #returning, 1, -1 do
            local entry = returning[i]
            entry.usable = opened(entry, now)
            if entry.usable == entry.slots then
                entry.returned = nil
                table.remove(returning, i)
            end
        end
    end
    return entries
end

--- Slots that a peer may use now, by this worker's latest snapshot.
function M.usable_slots(peer, now)
    local entry = entries[peer.id] or M.snapshot()[peer.id]
    if not entry then
        return peer.slots
    end
    return entry.returned and opened(entry, now) or entry.usable
end

-- The worker that probes

--- Start in this worker; one of the workers holds the lease and probes.
function M.start()
    prober.start(M)
end

--- Probe peers that nobody knows yet now rather than at the next round.
function M.greet(view)
    prober.greet(view, M)
end

return M
