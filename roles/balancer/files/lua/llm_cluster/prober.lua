-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Who is probed when, by one of the workers.
--
-- From the moment a peer stops until it is out, at worst: EARLY × probe_interval until the next probe starts, probe_timeout, and
-- REPEAT × probe_timeout for each repeat. With the defaults 1.8 + 1 + 0.75 = 3.55 s. The worker that probes holds a lease; when
-- it dies another takes over at its next tick.
--
-- What is found goes to the `health` module, which is handed in, as it knows this one.

local peers = require "llm_cluster.peers"
local probes = require "llm_cluster.probes"
local slots = require "llm_cluster.slots"
local speed = require "llm_cluster.speed"
local workers = require "llm_cluster.workers"

local M = {}

local DICT = "llm_state"
local TICK = 0.2             -- seconds between two rounds at most
local LEASE = 2              -- seconds that the right of a worker that lives but does nothing lasts
local SWEEP = 0.5            -- seconds between two looks for dead workers
local JUDGE = 0.5            -- seconds between two comparisons of the peers' speeds
local EARLY = 0.9            -- of probe_interval
local REPEAT = 0.75          -- of probe_timeout, for the repeat of a failed probe
local PAUSE = 0.2            -- seconds between the starts of a probe that failed at once and its repeat

local probing = {}           -- peer id → true while a probe runs
local due = {}               -- peer id → ngx.now() of the next probe
local canary_due = {}        -- peer id → ngx.now() of the next canary
local sweep_at, judge_at = 0, 0
local known_view

--- One token of each model that is loaded.
local function sing_all(peer, entry, limits)
    local ok, why = true, nil
    for _, model in ipairs(peer.models) do
        if ok and not (entry.lacks and entry.lacks[model]) and not (entry.cold and entry.cold[model]) then
            ok, why = probes.canary(peer, model, limits.canary_timeout)
        end
    end
    return ok, why
end

--- The same, in a slot as any request.
-- @return true; false and why; or nil: no slot was free, or it said that it is busy
local function sing(peer, limits, health)
    local id, pid, entry = peer.id, ngx.worker.pid(), health.snapshot()[peer.id]
    if not entry or not slots.take(id, entry.usable, pid) then
        return nil
    end
    local claim = slots.hold(peer, { id = "canary", model = table.concat(peer.models, ",") })
    local done, ok, why = pcall(sing_all, peer, entry, limits)
    slots.release(claim)
    if not done then
        error(ok, 0)
    end
    return ok, why
end

local function examine(peer, limits, health)
    local timeout = limits.probe_timeout
    local attempts = health.is_down(peer.id) and 1 or limits.probe_failures
    for attempt = 1, attempts do
        local began = ngx.now()
        local ok, found = probes.ask(peer, timeout)
        -- A drained peer gets no request, also not this one: who drained it tries it out before resuming.
        if ok and health.needs_canary(peer.id) and not peers.is_drained(peers.view(), peer) then
            ok, found = sing(peer, limits, health)
            if ok == nil then
                return
            end
        end
        if ok then
            if found then
                health.found(peer, "lacks", found.lacks)
            end
            health.succeeded(peer, limits)
            local cold = probes.cold(peer, limits.probe_timeout)
            if cold then
                health.found(peer, "cold", cold)
            end
            return
        elseif not found then
            return health.refused(peer)
        end
        health.failed(peer, found, limits)
        if attempt < attempts then
            timeout = limits.probe_timeout * REPEAT
            ngx.sleep(math.max(0, began + PAUSE - ngx.now()))
        end
    end
end

local function probe(premature, peer, limits, health)
    if premature then
        return
    end
    local ok, err = pcall(examine, peer, limits, health)
    probing[peer.id] = nil
    if not ok then
        ngx.log(ngx.ERR, "probe of ", peer.id, ": ", err)
    end
end

local function try_canary(peer, limits, health)
    for attempt = 1, limits.probe_failures do
        local ok, why = sing(peer, limits, health)
        if ok ~= false then
            return
        elseif attempt == limits.probe_failures then
            return health.canary_failed(peer, why)
        end
        ngx.sleep(PAUSE)
    end
end

local function canary(premature, peer, limits, health)
    if premature then
        return
    end
    local ok, err = pcall(try_canary, peer, limits, health)
    if not ok then
        ngx.log(ngx.ERR, "canary of ", peer.id, ": ", err)
    end
end

local function start_probe(peer, limits, health)
    local id, period = peer.id, limits.probe_interval * EARLY
    -- The first ones come all at once: spread those that follow.
    due[id] = ngx.now() + (due[id] and period or period * math.random())
    probing[id] = true
    local ok, err = ngx.timer.at(0, probe, peer, limits, health)
    if not ok then
        probing[id] = nil
        ngx.log(ngx.ERR, "probe of ", id, " not started: ", err)
    end
end

local function start_canary(peer, view, health, now)
    local id, limits = peer.id, view.limits
    local interval = limits.canary_interval
    if interval == 0 then
        return
    elseif not canary_due[id] then
        canary_due[id] = now + interval * math.random()
    elseif now >= canary_due[id] and health.is_up(id) and not peers.is_drained(view, peer) then
        canary_due[id] = now + interval
        local ok, err = ngx.timer.at(0, canary, peer, limits, health)
        if not ok then
            ngx.log(ngx.ERR, "canary of ", id, " not started: ", err)
        end
    end
end

--- Probe a peer now, in whatever worker.
function M.check(peer, limits, health)
    if not probing[peer.id] then
        start_probe(peer, limits, health)
    end
end

--- Probe peers that nobody knows yet.
function M.greet(view, health)
    for _, peer in ipairs(view.peers) do
        if health.state(peer.id) == "probing" then
            M.check(peer, view.limits, health)
        end
    end
end

--- Forget what is known about peers that left the table.
local function tidy(view, health)
    if known_view == view then
        return
    end
    local kept = {}
    for _, peer in ipairs(view.peers) do
        kept[peer.id] = true
    end
    for _, peer in ipairs(known_view and known_view.peers or {}) do
        if not kept[peer.id] then
            due[peer.id], canary_due[peer.id] = nil, nil
            health.forget(peer.id)
        end
    end
    known_view = view
end

--- Probe who is due. @return seconds until the next one is
local function round(health)
    local view = peers.view()
    local now, wait = ngx.now(), TICK
    if not view then
        return wait
    end
    tidy(view, health)
    for _, peer in ipairs(view.peers) do
        local id = peer.id
        if not probing[id] then
            if now >= (due[id] or 0) then
                start_probe(peer, view.limits, health)
            end
            wait = math.min(wait, due[id] - now)
        end
        start_canary(peer, view, health, now)
    end
    if now >= judge_at then
        judge_at = now + JUDGE
        health.judge(view)
    end
    return math.max(wait, 0.01)
end

--- Is this the worker that probes? A dead one's lease goes to exactly one other, at once.
local function has_lease(d, pid)
    local holder = d:get("lease")
    if holder == pid or not holder and d:add("lease", pid, LEASE)
        or holder and not workers.alive(holder) and d:add("lease_after:" .. holder, pid, LEASE)
    then
        d:set("lease", pid, LEASE)
        return true
    end
    return false
end

--- Is this the worker that probes, so that others do not do the same beside it?
function M.leads()
    return ngx.shared[DICT]:get("lease") == ngx.worker.pid()
end

--- @return seconds until there is something to do again
local function work(d, pid, health)
    speed.flush()
    if not has_lease(d, pid) then
        due, canary_due, known_view = {}, {}, nil
        return TICK
    end
    if ngx.now() >= sweep_at then
        sweep_at = ngx.now() + SWEEP
        workers.sweep()
    end
    return round(health)
end

local function tick(premature, health)
    local d, pid = ngx.shared[DICT], ngx.worker.pid()
    if premature then
        if d:get("lease") == pid then
            d:delete("lease")
        end
        return
    end
    local done, wait = pcall(work, d, pid, health)
    if not done then
        ngx.log(ngx.ERR, "probes: ", wait)
    end
    local ok, err = ngx.timer.at(done and wait or TICK, tick, health)
    if not ok then
        ngx.log(ngx.ERR, "probes stop in this worker: ", err)
    end
end

--- Start in this worker.
-- @param health the module that is told what was found
function M.start(health)
    assert(ngx.timer.at(0, tick, health))
end

return M
