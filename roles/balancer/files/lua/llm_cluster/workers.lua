-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The workers that serve, and what each of them counts.
--
-- A worker counts under its own pid: all such keys start with it. So nothing derived can drift, and what a worker that died had
-- counted goes with its keys. What holds for the balancer is the sum over living workers. Liveness goes by pid and the
-- process's start time, never by a heartbeat, since old workers outlive their timers during a reload.

local ffi = require "ffi"
local proc = require "llm_cluster.proc"

ffi.cdef [[
int kill(int pid, int sig);
]]

local M = {} -- pid: this worker's, once register() was called: asking the kernel each time costs a call

local DICT = "llm_slots"
local MAX_WORKERS = 256

local function dict()
    return ngx.shared[DICT]
end

local pids, pids_version = {}, nil

--- Pids of the workers that count, refreshed when one came or went.
-- @return list; and a number that moves on when it changes
function M.list()
    local d = dict()
    local version = d:get("version")
    if version ~= pids_version then
        pids = {}
        for i = 1, MAX_WORKERS do
            pids[#pids + 1] = d:get("worker:" .. i)
        end
        pids_version = version
    end
    return pids, pids_version
end

--- Does the worker count still?
function M.counts(pid)
    local list = M.list()
    for i = 1, #list do
        if list[i] == pid then
            return true
        end
    end
    return false
end

--- Delete what is kept under a pid.
local function drop(d, pid)
    local prefix = pid .. ":"
    for _, key in ipairs(d:get_keys(0)) do
        if key:sub(1, #prefix) == prefix then
            d:delete(key)
        end
    end
end

--- Make this worker known. Called once per worker.
function M.register()
    local d, pid = dict(), ngx.worker.pid()
    M.pid = pid
    M.sweep()
    drop(d, pid) -- pids come again: what an earlier worker of this one left is not ours
    for i = 1, MAX_WORKERS do
        if d:add("worker:" .. i, pid) then
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
    drop(d, pid)
    d:delete("started:" .. pid)
    d:delete("worker:" .. place)
    d:incr("version", 1, 0)
end

--- Forget workers that are gone, and everything that is counted under their pids.
-- @return true if there was one
function M.sweep()
    local d, found = dict(), false
    for i = 1, MAX_WORKERS do
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

--- Counts of one kind, each under its worker's pid.
-- @param letter what names the kind in the dict
-- @return {name(pid, id) = the count's key; sum(d, id) = the sum over the workers}
function M.counts_of(letter)
    local keys, keys_version = {}, nil -- pid → id → key; making them anew each time would cost more than reading the count

    local function name(pid, id)
        local of_pid = keys[pid]
        if not of_pid then
            of_pid = {}
            keys[pid] = of_pid
        end
        local key = of_pid[id]
        if not key then
            key = pid .. ":" .. letter .. ":" .. id
            of_pid[id] = key
        end
        return key
    end

    local function sum(d, id)
        local list, version = M.list()
        if version ~= keys_version then -- those of workers that are gone are let go
            keys, keys_version = {}, version
        end
        local total = 0
        for i = 1, #list do
            total = total + (d:get(name(list[i], id)) or 0)
        end
        return total
    end

    return { name = name, sum = sum }
end

return M
