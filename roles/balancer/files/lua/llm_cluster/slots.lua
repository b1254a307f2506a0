-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Slots in use, over all workers.
--
-- Each worker writes only its own counters, as absolute numbers: what it holds now. So nothing can drift, and a worker that died
-- takes its claims with it once its pid is swept. Free means: the sum over living workers is below the peer's slots. A claim
-- writes first and sums after, so two workers never overcommit; at worst both step back and try again.

local ffi = require "ffi"
local proc = require "llm_cluster.proc"

ffi.cdef [[
int kill(int pid, int sig);
]]

local M = {}

local DICT = "llm_slots"
local MAX_WORKERS = 256

local held = {} -- peer id → slots that this worker holds
local pids, pids_version = {}, nil

local function dict()
    return ngx.shared[DICT]
end

--- Pids of the workers that count, refreshed when one came or went.
local function workers()
    local d = dict()
    local version = d:get("version")
    if version ~= pids_version then
        pids = {}
        for i = 1, d:get("highest") or 0 do
            pids[#pids + 1] = d:get("worker:" .. i)
        end
        pids_version = version
    end
    return pids
end

--- Make this worker known. Called once per worker.
function M.register()
    local d, pid = dict(), ngx.worker.pid()
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
local function alive(d, pid)
    if ffi.C.kill(pid, 0) ~= 0 and ffi.errno() == 3 then -- ESRCH
        return false
    end
    local then_, now = d:get("started:" .. pid), proc.start_time(pid)
    return not then_ or then_ == "" or not now or then_ == now
end

--- Forget workers that are gone, and what they held.
function M.sweep()
    local d = dict()
    for i = 1, d:get("highest") or 0 do
        local pid = d:get("worker:" .. i)
        if pid and not alive(d, pid) then
            d:delete("worker:" .. i)
            d:delete("started:" .. pid)
            d:incr("version", 1, 0)
            local prefix = pid .. ":"
            for _, key in ipairs(d:get_keys(0)) do
                if key:sub(1, #prefix) == prefix then
                    d:delete(key)
                end
            end
        end
    end
end

--- Slots in use on a peer.
function M.busy(id)
    local d, sum = dict(), 0
    for _, pid in ipairs(workers()) do
        sum = sum + (d:get(pid .. ":" .. id) or 0)
    end
    return sum
end

local function write(id, count)
    held[id] = count > 0 and count or nil
    local d, key = dict(), ngx.worker.pid() .. ":" .. id
    if count == 0 then
        d:delete(key)
        return true
    end
    return d:safe_set(key, count)
end

--- Take one slot of a peer.
-- @return claim to give to release(), or nil if none is free
function M.claim(peer)
    local id = peer.id
    local count = (held[id] or 0) + 1
    local ok, err = write(id, count)
    if not ok then
        write(id, count - 1)
        ngx.log(ngx.ERR, "slots: ", err)
        return nil
    end
    if M.busy(id) > peer.slots then
        write(id, count - 1)
        return nil
    end
    return { id = id, peer = peer }
end

--- Give a slot back; once is enough, more does no harm.
function M.release(claim)
    if claim and not claim.released then
        claim.released = true
        if not claim.slotless then
            write(claim.id, (held[claim.id] or 1) - 1)
        end
    end
end

--- What each worker holds, for GET /state: list of {pid, held}.
function M.by_worker(ids)
    local d, out = dict(), {}
    for i, pid in ipairs(workers()) do
        local sum = 0
        for _, id in ipairs(ids) do
            sum = sum + (d:get(pid .. ":" .. id) or 0)
        end
        out[i] = { pid = pid, held = sum }
    end
    return out
end

return M
