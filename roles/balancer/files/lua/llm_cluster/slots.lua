-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Slots in use, over all workers.
--
-- Each claim is counted under the pid of the worker that serves the request (workers.lua). In use means: the sum over living
-- workers. A claim counts first and sums after, so two workers never overcommit; at worst both step back and the request waits.
--
-- Slots that wait for their engine to end after the request is over outlive the worker: they are counted under 0, which is no
-- worker, so nobody takes them along. 0:f:PEER is the list of them, from which 0:b:PEER and 0:s:PEER are made anew whenever it
-- changes, under the lock; all three are gone by themselves when the last one's time is over.

local workers = require "llm_cluster.workers"

local M = {}

local DICT = "llm_slots"
local ENDING = 0             -- whom slots are counted under that only wait for the engine to end
local SEPARATOR = "\30"      -- between the notes about them

local busy_of = workers.counts_of("b")
local suspects_of = workers.counts_of("s")

local function dict()
    return ngx.shared[DICT]
end

--- Slots in use on a peer, with those that are ending.
function M.busy(id)
    local d = dict()
    return busy_of.sum(d, id) + (d:get(busy_of.name(ENDING, id)) or 0)
end

--- Take one slot of a peer for a request of the given worker.
-- @param id the peer's
-- @param most slots that may be in use with this one
-- @param pid of the worker that serves the request
-- @param suspect boolean: another peer died with the request in its hands
-- @param alone boolean: it must be the only suspect there
-- @return boolean
function M.take(id, most, pid, suspect, alone)
    local d = dict()
    local name = busy_of.name(pid, id)
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
        d:incr(suspects_of.name(pid, id), 1, 0)
        -- Many become suspects in the same moment, in all workers, and the same peer looks best to them.
        if alone and M.suspects(id) > 1 then
            M.put_back(id, pid, suspect)
            return false
        end
    end
    return true
end

--- Give back what take() took.
function M.put_back(id, pid, suspect)
    local d = dict()
    if suspect then
        d:incr(suspects_of.name(pid, id), -1)
    end
    d:incr(busy_of.name(pid, id), -1)
end

local serial = 0

--- What holds a slot from now on; GET /state and a drain's time-out name it.
-- @param peer its peer
-- @param request {id, model, key = name or nil}
-- @param suspect what take() was told
-- @return claim to give to release()
function M.hold(peer, request, suspect)
    serial = serial + 1
    local pid = workers.pid
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
    local list, busy, suspect = ENDING .. ":f:" .. id, busy_of.name(ENDING, id), suspects_of.name(ENDING, id)
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
    return dict():get(busy_of.name(ENDING, id)) or 0
end

--- Requests on a peer that were at another one when it died.
function M.suspects(id)
    local d = dict()
    return suspects_of.sum(d, id) + (d:get(suspects_of.name(ENDING, id)) or 0)
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
    for i, pid in ipairs(workers.list()) do
        local sum = 0
        for _, id in ipairs(ids) do
            sum = sum + (d:get(busy_of.name(pid, id)) or 0)
        end
        out[i] = { pid = pid, held = sum }
    end
    return out
end

return M
