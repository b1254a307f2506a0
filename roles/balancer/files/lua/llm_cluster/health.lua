-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Which peers answer: probes by one worker, and what requests find out.
--
-- In: a new peer at its first good probe, an ejected one after `probe_successes` in a row, not before its hold-down passed.
-- Out: after `probe_failures` in a row (a failed probe is repeated at once), or at once when the connection is refused. A peer
-- that goes out again and again is held down twice as long each time. Saying "busy" (503, 429) is no failure: it rests a moment.

local exchange = require "llm_cluster.exchange"
local peers = require "llm_cluster.peers"
local slots = require "llm_cluster.slots"

local M = {}

local DICT = "llm_state"
local TICK = 0.2              -- seconds between two rounds at most
local LEASE = 2               -- seconds that the probing worker's right lasts without renewal
local SWEEP = 0.5             -- seconds between two looks for dead workers
local MAX_HOLD = 60           -- seconds
local FLAP_MEMORY = 120       -- seconds after a hold-down in which another ejection counts as flapping
local MAX_PROBE_ANSWER = 65536
local PROBES = { llama_cpp = "/health", ollama = "/api/version" }
local NAMES = { [0] = "probing", [1] = "up", [2] = "down" }
local PROBING, UP, DOWN = 0, 1, 2

local function dict()
    return ngx.shared[DICT]
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

local function set(id, state, why)
    local d = dict()
    d:set("health:" .. id, state)
    d:set("why:" .. id, why)
    d:set("since:" .. id, ngx.now())
    d:delete("failures:" .. id)
    d:delete("successes:" .. id)
    ngx.log(ngx.WARN, "peer ", id, " is ", NAMES[state], ": ", why)
end

local function eject(peer, why)
    local d, id, view = dict(), peer.id, peers.view()
    if d:get("health:" .. id) == DOWN then
        d:set("why:" .. id, why)
        return
    end
    if not (view and peers.is_drained(view, peer)) then -- planned restarts happen under a drain mark: no flapping
        local flaps = (d:get("flaps:" .. id) or 0) + 1
        local hold = flaps == 1 and 0 or math.min(MAX_HOLD, 2 ^ flaps)
        d:set("flaps:" .. id, flaps, FLAP_MEMORY + hold)
        if hold > 0 then
            d:set("hold:" .. id, ngx.now() + hold, hold)
        end
    end
    set(id, DOWN, why)
end

--- A connection was refused: nothing listens there.
function M.refused(peer)
    eject(peer, "connection refused")
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

local function succeeded(peer, limits)
    local id, d = peer.id, dict()
    local state = d:get("health:" .. id) or PROBING
    if state == UP then
        d:delete("failures:" .. id)
    elseif state == PROBING then
        set(id, UP, "first probe answered")
    else
        local successes = d:incr("successes:" .. id, 1, 0)
        if successes >= limits.probe_successes and not d:get("hold:" .. id) then
            set(id, UP, successes .. " probes answered")
        end
    end
end

--- It said that it is busy: let it rest.
-- @param seconds how long, or nil
function M.busy(peer, seconds)
    dict():set("resting:" .. peer.id, true, math.max(0.2, math.min(seconds or 0.5, 5)))
end

function M.is_resting(id)
    return dict():get("resting:" .. id) == true
end

local function ask(peer, limits)
    local status, err, detail = exchange.get(peer, PROBES[peer.engine], limits.probe_timeout, MAX_PROBE_ANSWER)
    if status == 200 then
        return true
    elseif status then
        return false, "probe answered " .. status
    elseif err == "refused" then
        return false, nil
    end
    return false, "probe: " .. (detail or err)
end

local probing = {} -- peer id → true while a probe runs
local due = {}     -- peer id → ngx.now() of the next probe
local sweep_at = 0

local function probe(premature, peer, limits)
    if premature then
        return
    end
    for _ = 1, 2 do
        local ok, why = ask(peer, limits)
        if ok then
            succeeded(peer, limits)
            break
        elseif not why then
            M.refused(peer)
            break
        end
        M.failed(peer, why, limits)
    end
    probing[peer.id] = nil
end

local function start_probe(peer, limits)
    local id = peer.id
    due[id] = ngx.now() + limits.probe_interval
    probing[id] = true
    local ok, err = ngx.timer.at(0, probe, peer, limits)
    if not ok then
        probing[id] = nil
        ngx.log(ngx.ERR, "probe of ", id, " not started: ", err)
    end
end

--- Probe peers that nobody knows yet now rather than at the next round.
function M.greet(view)
    for _, peer in ipairs(view.peers) do
        if not dict():get("health:" .. peer.id) and not probing[peer.id] then
            start_probe(peer, view.limits)
        end
    end
end

--- Probe who is due. @return seconds until the next one is
local function round()
    local view = peers.view()
    local now, wait = ngx.now(), TICK
    for _, peer in ipairs(view and view.peers or {}) do
        local id = peer.id
        if not probing[id] then
            if now >= (due[id] or 0) then
                start_probe(peer, view.limits)
            end
            wait = math.min(wait, due[id] - now)
        end
    end
    return math.max(wait, 0.01)
end

local function tick(premature)
    local d, pid = dict(), ngx.worker.pid()
    if premature then
        if d:get("lease") == pid then
            d:delete("lease")
        end
        return
    end
    local wait = TICK
    if d:get("lease") == pid or d:add("lease", pid, LEASE) then
        d:set("lease", pid, LEASE)
        if ngx.now() >= sweep_at then
            sweep_at = ngx.now() + SWEEP
            slots.sweep()
        end
        local ok, result = pcall(round)
        if ok then
            wait = result
        else
            ngx.log(ngx.ERR, "probes: ", result)
        end
    else
        due = {}
    end
    local ok, err = ngx.timer.at(wait, tick)
    if not ok then
        ngx.log(ngx.ERR, "probes stop in this worker: ", err)
    end
end

--- Start in this worker; one of the workers holds the lease and probes.
function M.start()
    assert(ngx.timer.at(0, tick))
end

return M
