-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The waiting requests as they lie in the shared dict: per candidate set a list of tickets, oldest first; per ticket what
-- matching must know. Everything here happens under the lock.
--
-- A list's entry is NUMBER:PID:SERIAL, and PID:t1:SERIAL is what matching must know. The number is the request's place in the
-- order of arrival, which it keeps; the serial is this place's own, so that nothing left of an earlier place of the same request
-- can be taken for the present one. As the key starts with its worker's pid, workers.sweep() drops what belongs to a worker that
-- died, and reading steps over entries whose ticket is gone.

local M = {}

-- During an upgrade's reload old and new workers share the queue. What pack() writes is only for those who read the same form, so
-- a change of it changes this name.
local KIND = ":t2:"

local resolved, resolved_version = {}, nil -- set key → list of peers, for one version of the table

--- The peers of a set that are in the table.
function M.peers_of(d, key, view)
    if resolved_version ~= view then
        resolved, resolved_version = {}, view
    end
    local list = resolved[key]
    if not list then
        local by_id = {}
        for _, peer in ipairs(view.peers) do
            by_id[peer.id] = peer
        end
        list = {}
        for id in (d:get("set:" .. key) or ""):gmatch("[^\n]+") do
            list[#list + 1] = by_id[id]
        end
        resolved[key] = list
    end
    return list
end

--- Does nobody wait?
function M.is_empty(d)
    local active = d:get("active")
    return not active or active == "\n"
end

--- How many wait in the set, or did until a moment ago.
function M.length(d, key)
    return d:llen("queue:" .. key) or 0
end

--- Keys of the sets that somebody waits in.
function M.active_sets(d)
    local out = {}
    for key in (d:get("active") or ""):gmatch("[^\n]+") do
        out[#out + 1] = key
    end
    return out
end

--- Let the set be matched from now on.
local function activate(d, set)
    local active = d:get("active") or "\n"
    if not active:find("\n" .. set.key .. "\n", 1, true) then
        local ids = {}
        for i, peer in ipairs(set.peers) do
            ids[i] = peer.id
        end
        d:set("set:" .. set.key, table.concat(ids, "\n"))
        d:set("active", active .. set.key .. "\n")
        resolved[set.key] = nil
    end
end

--- Nobody waits in the set any more.
local function deactivate(d, key)
    local active = d:get("active") or "\n"
    local s, e = active:find("\n" .. key .. "\n", 1, true)
    if s then
        d:set("active", active:sub(1, s) .. active:sub(e + 1))
    end
    d:delete("queue:" .. key)
    d:delete("set:" .. key)
end

local function pack_map(map)
    local out = {}
    for id, value in pairs(map or {}) do
        out[#out + 1] = id .. "=" .. (value == true and 1 or value)
    end
    return table.concat(out, ",")
end

local function unpack_map(text)
    if text == "" then
        return nil
    end
    local out = {}
    for id, value in text:gmatch("([^,]+)=([^,]+)") do
        out[id] = tonumber(value)
    end
    return out
end

local function pack(want)
    return table.concat({
        want.since, want.model, want.suspect or "",
        pack_map(want.avoid), pack_map(want.preferred), pack_map(want.holders), pack_map(want.saves),
    }, "\n")
end

--- The entry of a list as a waiting request.
-- @return {number, pid, serial, since, model, suspect, avoid, preferred, holders, saves}, or nil if it does not wait any more
local function read(d, entry)
    local number, pid, serial = entry:match("^(%d+):(%d+):(%d+)$")
    local text = number and d:get(pid .. KIND .. serial)
    if not text then
        return nil
    end
    local since, model, suspect, avoid, preferred, holders, saves
        = text:match("^(.-)\n(.-)\n(.-)\n(.-)\n(.-)\n(.-)\n(.*)$")
    return {
        number = tonumber(number), pid = tonumber(pid), serial = tonumber(serial), since = tonumber(since),
        model = model, suspect = tonumber(suspect), avoid = unpack_map(avoid), preferred = unpack_map(preferred),
        holders = unpack_map(holders), saves = unpack_map(saves),
    }
end

--- Put a ticket into its set's list: at the end, or, if it was in the queue before, at its place in the order of arrival.
local function insert(d, key, number, entry, again)
    local list = "queue:" .. key
    if not again then
        return d:rpush(list, entry)
    end
    local passed, next_one = {}, d:lpop(list)
    while next_one and tonumber(next_one:match("^%d+")) < number do
        passed[#passed + 1] = next_one
        next_one = d:lpop(list)
    end
    if next_one then
        d:lpush(list, next_one)
    end
    local ok, err = d:lpush(list, entry)
    for i = #passed, 1, -1 do
        d:lpush(list, passed[i])
    end
    return ok, err
end

--- A place as it stands in its set's list.
function M.entry(number, pid, serial)
    return number .. ":" .. pid .. ":" .. serial
end

--- Add a request to a set's queue.
-- @param again boolean: it was in the queue before and gets its place back
-- @return true, or nil and the dict's error
function M.add(d, set, number, pid, serial, want, again)
    local ok, err = d:safe_set(pid .. KIND .. serial, pack(want))
    if ok then
        activate(d, set)
        ok, err = insert(d, set.key, number, M.entry(number, pid, serial), again)
    end
    if not ok then
        M.remove(d, pid, serial)
        return nil, err
    end
    return true
end

--- Entries of a set's list: {entry = true}.
function M.entries(d, key)
    local list, out = "queue:" .. key, {}
    for _ = 1, d:llen(list) or 0 do
        local entry = d:lpop(list)
        out[entry] = true
        d:rpush(list, entry)
    end
    return out
end

--- The request waits no longer; its entry goes when matching comes by.
function M.remove(d, pid, serial)
    d:delete(pid .. KIND .. serial)
end

--- The oldest tickets of a set that a function accepts. Entries that wait no longer are dropped.
-- @param most number of them
-- @param accepts function of a ticket: true, false, or nil if the ticket has nothing to do with what is looked for
-- @param out list that they are added to
function M.oldest(d, key, most, accepts, out)
    local list, taken, found, looked = "queue:" .. key, {}, 0, 0
    -- Those that are not accepted stay and do not hide those behind them, to a limit.
    while found < most and looked < 4 * most do
        local entry = d:lpop(list)
        if not entry then
            break
        end
        local ticket = read(d, entry)
        if ticket then
            taken[#taken + 1] = entry
            local accepted = accepts(ticket)
            if accepted then
                found = found + 1
                out[#out + 1] = ticket
            end
            looked = looked + (accepted == nil and 0 or 1)
        end
    end
    for i = #taken, 1, -1 do
        d:lpush(list, taken[i])
    end
    if #taken == 0 then
        deactivate(d, key)
    end
end

--- Drop the entries of a set that wait no longer. Matching does so too, but it may not come by while all peers are out.
-- @return the number that is left
function M.compact(d, key)
    local list, left = "queue:" .. key, 0
    for _ = 1, d:llen(list) or 0 do
        local entry = d:lpop(list)
        if read(d, entry) then
            d:rpush(list, entry)
            left = left + 1
        end
    end
    if left == 0 then
        deactivate(d, key)
    end
    return left
end

--- Compact a set if most of its entries may be gone, so that it costs little in the long run.
-- @param waiting requests that wait in all sets together
function M.tidy(d, key, waiting)
    if M.length(d, key) > 2 * waiting + 64 then
        M.compact(d, key)
    end
end

--- Every set somebody waits in: list of {peers = ids, waiting = requests}.
function M.sets(d)
    local out = {}
    for _, key in ipairs(M.active_sets(d)) do
        local ids = {}
        for id in (d:get("set:" .. key) or ""):gmatch("[^\n]+") do
            ids[#ids + 1] = id
        end
        local left = M.compact(d, key)
        if left > 0 then
            out[#out + 1] = { peers = ids, waiting = left }
        end
    end
    return out
end

--- Seconds since the epoch when the oldest waiting request came, or nil.
function M.oldest_since(d)
    local oldest
    for _, name in ipairs(d:get_keys(0)) do
        if name:find("^%d+" .. KIND .. "%d+$") then
            local since = tonumber((d:get(name) or ""):match("^[%d.]+"))
            oldest = since and math.min(oldest or since, since) or oldest
        end
    end
    return oldest
end

return M
