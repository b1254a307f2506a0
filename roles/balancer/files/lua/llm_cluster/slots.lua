-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Slots in use, over all workers.
--
-- Each claim is counted under the pid of the worker that serves the request, so nothing derived can drift: what a worker that
-- died held goes with its keys, which all start with its pid. In use means: the sum over living workers. A claim counts first
-- and sums after, so two workers never overcommit; at worst both step back and the request waits.
--
-- Slots that wait for their engine to end after the request is over outlive the worker: they are counted under 0, which is no
-- worker, so nobody takes them along. 0:f:PEER is the list of them, from which 0:b:PEER and 0:s:PEER are made anew whenever it
-- changes, under the lock; all three are gone by themselves when the last one's time is over.

local ffi = require "ffi"
local proc = require "llm_cluster.proc"

ffi.cdef [[
int kill(int pid, int sig);
]]

local M = {} -- pid: this worker's, once register() was called: asking the kernel each time costs a call

local DICT = "llm_slots"
local MAX_WORKERS = 256
local ENDING = 0             -- whom slots are counted under that only wait for the engine to end
local SEPARATOR = "\30"      -- between the notes about them

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

--- Does the worker count still?
function M.counts(pid)
    local list = M.workers()
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
    drop(d, pid)
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
    local d, list = dict(), M.workers()
    local sum = d:get(name_of(ENDING, id)) or 0
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
        dict():delete(claim.note)
        M.put_back(claim.id, claim.pid, claim.suspect)
    end
end

local function notes_of(text)
    local out = {}
    for note in (text or ""):gmatch("[^" .. SEPARATOR .. "]+") do
        out[#out + 1] = note
    end
    return out
end

--- Until when the slot of a note may be ending, and whether its request was a suspect.
local function terms(note)
    local until_, suspect = note:match("\n([%d.]+)\n(%d?)$")
    return tonumber(until_) or 0, suspect == "1"
end

--- Keep the notes about a peer's ending slots, and count them.
-- @return true, or nil and the dict's error
local function keep_ending(d, id, notes)
    local list, busy, suspect = ENDING .. ":f:" .. id, name_of(ENDING, id), ENDING .. ":s:" .. id
    if #notes == 0 then
        d:delete(list)
        d:delete(busy)
        d:delete(suspect)
        return true
    end
    local last, suspects = 0, 0
    for _, note in ipairs(notes) do
        local until_, is_suspect = terms(note)
        last, suspects = math.max(last, until_), suspects + (is_suspect and 1 or 0)
    end
    local lasts = math.max(0.001, last - ngx.now())
    local ok, err = d:safe_set(list, table.concat(notes, SEPARATOR), lasts)
    if ok then
        ok, err = d:safe_set(busy, #notes, lasts)
    end
    if ok then
        ok, err = d:safe_set(suspect, suspects, lasts)
    end
    return ok, err
end

--- The request of a claim is over, but its engine may go on: the slot stays in use, and not by this worker. Under the lock.
-- @param until_ ngx.now() value from which on it is free whatever the engine does
-- @return true; or nil and the dict's error, and the claim is as before
function M.let_end(d, claim, until_)
    local notes = notes_of(d:get(ENDING .. ":f:" .. claim.id))
    notes[#notes + 1] = claim.text .. "\n" .. until_ .. "\n" .. (claim.suspect and 1 or "")
    local ok, err = keep_ending(d, claim.id, notes)
    if not ok then
        notes[#notes] = nil
        keep_ending(d, claim.id, notes)
        return nil, err
    end
    M.release(claim)
    return true
end

--- Free some of a peer's ending slots, the oldest first, and those whose time is over. Under the lock.
-- @param ended number of slots that the engine has ended with
-- @return number of slots that became free
function M.free_ended(d, id, ended)
    local now, notes, left = ngx.now(), notes_of(d:get(ENDING .. ":f:" .. id)), {}
    for _, note in ipairs(notes) do
        if terms(note) > now then
            left[#left + 1] = note
        end
    end
    for _ = 1, math.min(ended, #left) do
        table.remove(left, 1)
    end
    keep_ending(d, id, left)
    return #notes - #left
end

--- Slots on a peer that only wait for the engine to end.
function M.ending(id)
    return dict():get(name_of(ENDING, id)) or 0
end

--- Requests on a peer that were at another one when it died.
function M.suspects(id)
    local d = dict()
    local sum = d:get(ENDING .. ":s:" .. id) or 0
    for _, pid in ipairs(M.workers()) do
        sum = sum + (d:get(pid .. ":s:" .. id) or 0)
    end
    return sum
end

--- What holds slots, by peer.
-- @return {peer id = list of {id = request id, model, key = name or nil, since = seconds since the epoch, ending = boolean}}
function M.in_flight()
    local d, out = dict(), {}
    for _, name in ipairs(d:get_keys(0)) do
        for _, text in ipairs(name:find("^%d+:f:") and notes_of(d:get(name)) or {}) do
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
