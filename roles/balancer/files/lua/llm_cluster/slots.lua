-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Slots in use, over all workers.
--
-- Each claim is counted under the pid of the worker that serves the request, so nothing derived can drift: what a worker that
-- died held goes with its keys, which all start with its pid. In use means: the sum over living workers. A claim counts first
-- and sums after, so two workers never overcommit; at worst both step back and the request waits.

local ffi = require "ffi"
local proc = require "llm_cluster.proc"

ffi.cdef [[
int kill(int pid, int sig);
]]

local M = {} -- pid: this worker's, once register() was called: asking the kernel each time costs a call

local DICT = "llm_slots"
local MAX_WORKERS = 256

local pids, pids_version = {}, nil
local names = {} -- pid → peer id → key of its count

local function dict()
    return ngx.shared[DICT]
end

--- Pids of the workers that count, refreshed when one came or went.
-- @return list; and a number that moves on when it changes
function M.workers()
    local d = dict()
    local version = d:get("version")
    if version ~= pids_version then
        pids, names = {}, {}
        for i = 1, d:get("highest") or 0 do
            pids[#pids + 1] = d:get("worker:" .. i)
        end
        pids_version = version
    end
    return pids, pids_version
end

--- Make this worker known. Called once per worker.
function M.register()
    local d, pid = dict(), ngx.worker.pid()
    M.pid = pid
    M.sweep()
    for i = 1, MAX_WORKERS do
        if d:add("worker:" .. i, pid) then
            if i > (d:get("highest") or 0) then
                d:set("highest", i)
            end
            d:set("started:" .. pid, proc.start_time(pid) or "")
            d:incr("version", 1, 0)
            return
        end
    end
    ngx.log(ngx.ERR, "more than ", MAX_WORKERS, " workers: this one's slots are not counted")
end

--- Is the worker alive, and still the process it was?
function M.alive(pid)
    if ffi.C.kill(pid, 0) ~= 0 and ffi.errno() == 3 then -- ESRCH
        return false
    end
    local then_, now = dict():get("started:" .. pid), proc.start_time(pid)
    return not then_ or then_ == "" or not now or then_ == now
end

--- Forget a worker.
-- @param place its number among the workers
local function forget(d, place, pid)
    local prefix = pid .. ":"
    for _, key in ipairs(d:get_keys(0)) do
        if key:sub(1, #prefix) == prefix then
            d:delete(key)
        end
    end
    d:delete("started:" .. pid)
    d:delete("worker:" .. place)
    d:incr("version", 1, 0)
end

--- Forget workers that are gone, and everything that is counted under their pids.
-- @return true if there was one
function M.sweep()
    local d, found = dict(), false
    for i = 1, d:get("highest") or 0 do
        local pid = d:get("worker:" .. i)
        -- Only one worker does it: a second one, late, would delete what a new worker has written there meanwhile.
        if pid and not M.alive(pid) and d:add("sweep:" .. pid, true, 10) then
            if d:get("worker:" .. i) == pid then
                found = true
                forget(d, i, pid)
            end
            d:delete("sweep:" .. pid)
        end
    end
    return found
end

local function name_of(pid, id)
    local of_pid = names[pid]
    if not of_pid then
        of_pid = {}
        names[pid] = of_pid
    end
    local name = of_pid[id]
    if not name then
        name = pid .. ":b:" .. id
        of_pid[id] = name
    end
    return name
end

--- Slots in use on a peer, with those that are ending.
function M.busy(id)
    local d, sum = dict(), 0
    local list = M.workers()
    for i = 1, #list do
        sum = sum + (d:get(name_of(list[i], id)) or 0)
    end
    return sum
end

--- Take one slot of a peer for a request of the given worker.
-- @param id the peer's
-- @param most slots that may be in use with this one
-- @param pid of the worker that serves the request
-- @param suspect boolean: another peer died with the request in its hands
-- @return boolean
function M.take(id, most, pid, suspect)
    local d = dict()
    local name = name_of(pid, id)
    local count, err = d:incr(name, 1, 0)
    if not count then
        ngx.log(ngx.ERR, "slots: ", err)
        return false
    end
    if M.busy(id) > most then
        d:incr(name, -1)
        return false
    end
    if suspect then
        d:incr(pid .. ":s:" .. id, 1, 0)
    end
    return true
end

--- Give back what take() took.
function M.put_back(id, pid, suspect)
    local d = dict()
    if suspect then
        d:incr(pid .. ":s:" .. id, -1)
    end
    d:incr(name_of(pid, id), -1)
end

local serial = 0

--- What holds a slot from now on; GET /state and a drain's time-out name it.
-- @param peer its peer
-- @param request {id, model, key = name or nil}
-- @param suspect what take() was told
-- @return claim to give to release()
function M.hold(peer, request, suspect)
    serial = serial + 1
    local pid = M.pid
    local claim = { id = peer.id, peer = peer, pid = pid, suspect = suspect, note = pid .. ":f:" .. serial }
    claim.text = peer.id .. "\n" .. request.id .. "\n" .. (request.model or "") .. "\n" .. (request.key or "") .. "\n"
        .. ngx.now()
    dict():safe_set(claim.note, claim.text)
    return claim
end

--- Give a slot back; once is enough, more does no harm.
function M.release(claim)
    if claim and not claim.released then
        claim.released = true
        local d = dict()
        if claim.ending then
            d:incr(claim.pid .. ":e:" .. claim.id, -1)
        end
        d:delete(claim.note)
        M.put_back(claim.id, claim.pid, claim.suspect)
    end
end

--- The request is over here, but the engine may go on: the slot stays in use until release().
function M.mark_ending(claim)
    claim.ending = true
    local d = dict()
    d:incr(claim.pid .. ":e:" .. claim.id, 1, 0)
    d:safe_set(claim.note, claim.text .. "\nending")
end

local function sum_of(kind, id)
    local d, sum = dict(), 0
    for _, pid in ipairs(M.workers()) do
        sum = sum + (d:get(pid .. kind .. id) or 0)
    end
    return sum
end

--- Slots on a peer that only wait for the engine to end.
function M.ending(id)
    return sum_of(":e:", id)
end

--- Requests on a peer that were at another one when it died.
function M.suspects(id)
    return sum_of(":s:", id)
end

--- What holds slots, by peer.
-- @return {peer id = list of {id = request id, model, key = name or nil, since = seconds since the epoch, ending = boolean}}
function M.in_flight()
    local d, out = dict(), {}
    for _, name in ipairs(d:get_keys(0)) do
        local text = name:find("^%d+:f:%d+$") and d:get(name)
        if text then
            local id, request, model, key, since, ending = text:match("^(.-)\n(.-)\n(.-)\n(.-)\n([%d.]+)\n?(.*)$")
            if id then
                out[id] = out[id] or {}
                table.insert(out[id], {
                    id = request, model = model, key = key ~= "" and key or nil, since = tonumber(since), ending = ending ~= "",
                })
            end
        end
    end
    for _, list in pairs(out) do
        table.sort(list, function(a, b) return a.since < b.since end)
    end
    return out
end

--- What each worker holds, for GET /state: list of {pid, held}.
function M.by_worker(ids)
    local d, out = dict(), {}
    for i, pid in ipairs(M.workers()) do
        local sum = 0
        for _, id in ipairs(ids) do
            sum = sum + (d:get(pid .. ":b:" .. id) or 0)
        end
        out[i] = { pid = pid, held = sum }
    end
    return out
end

return M
