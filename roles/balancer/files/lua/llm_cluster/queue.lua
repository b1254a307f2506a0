-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The central queue: one FIFO per candidate set (the peers that may take a request), over all workers.
--
-- Matching is slot-centric: a free slot looks at the oldest waiters of every set that contains its peer, so a request for a busy
-- model never blocks one for an idle model, and whatever slot becomes free serves the oldest request that can use it.
--
-- Tickets change under one lock and without a yield, so that it also works when a request ends (log_by_lua): each is either
-- granted or given up, never both. The winner is woken by its semaphore if it is in this worker, else by its worker's mailbox.
-- One waiting request of each worker, the leader, looks into the mailbox every few milliseconds, and matches anew now and then,
-- since a peer can also become free by coming back. A request leads rather than a timer, because timers end with a reload while
-- requests go on.

local semaphore = require "ngx.semaphore"

local health = require "llm_cluster.health"
local json = require "llm_cluster.json"
local lock = require "llm_cluster.lock"
local peers = require "llm_cluster.peers"
local placement = require "llm_cluster.placement"
local slots = require "llm_cluster.slots"
local tickets = require "llm_cluster.tickets"
local workers = require "llm_cluster.workers"

local M = {}

local DICT = "llm_slots"
local MAIL = 0.003           -- seconds between two looks into the mailbox
local ALONE = 0.05           -- seconds between two looks of the leader when there is no other worker
local REMATCH = 0.05         -- seconds between two matches that nothing but time calls for
local LOOK = 0.5             -- seconds between two looks of a waiting request at its client
local RATE_WINDOW = 5        -- seconds over which grants are counted

local clock = placement.clock()
local waiters = {}           -- serial → {number, serial, semaphore, set, want, bytes, view, granted = peer id}
local last_serial = 0
local leader                 -- serial of a waiting request
local rematch_at = 0
local known_generation       -- of the workers, when entries were last looked after

local function dict()
    return ngx.shared[DICT]
end

-- Matching

--- Suspects at the peer; what it just broke off with is one, too.
local function suspects(id)
    return slots.suspects(id) + (health.may_be_dying(id) and 1 or 0)
end

-- As placement wants it; used anew for every match.
local fleet = { busy = slots.busy, suspects = suspects, usable = health.usable_slots }

local function fleet_now(view)
    fleet.now, fleet.policy, fleet.health, fleet.drained = ngx.now(), view.table.policy, health.snapshot(), view.drained
    fleet.holding = nil
    return fleet
end

--- Few names that come again: a dict gives the room of what expired back only when it needs it, and then takes other things, too.
local function rate_key(window)
    return "grants:" .. window % 4
end

local function count_grant(d, now)
    d:incr(rate_key(math.floor(now / RATE_WINDOW)), 1, 0, 3 * RATE_WINDOW)
end

--- Grants a second, over the last windows.
local function drain_rate(d)
    local now = ngx.now()
    local window = math.floor(now / RATE_WINDOW)
    local sum = (d:get(rate_key(window)) or 0) + (d:get(rate_key(window - 1)) or 0)
    return sum / (RATE_WINDOW + now - window * RATE_WINDOW)
end

--- Give a peer's slot to a ticket. Under the lock.
-- @param view from before the lock
local function grant(d, peer, ticket, view)
    if not workers.counts(ticket.pid) then -- its worker died just now
        tickets.remove(d, ticket.pid, ticket.serial)
        return true
    end
    local alone = placement.parts_ways(ticket, fleet.now)
    if not slots.take(peer.id, fleet.usable(peer, fleet.now), ticket.pid, ticket.suspect, alone) then
        return false
    elseif peers.view() ~= view then -- as in try()
        slots.put_back(peer.id, ticket.pid, ticket.suspect)
        return false
    end
    tickets.remove(d, ticket.pid, ticket.serial)
    count_grant(d, fleet.now)
    local mine = ticket.pid == workers.pid and waiters[ticket.serial]
    if mine then
        mine.granted = peer.id
        mine.semaphore:post(1)
    else
        d:set(ticket.pid .. ":g:" .. ticket.serial, peer.id)
        d:rpush(ticket.pid .. ":mail", ticket.serial)
    end
    return true
end

--- The oldest waiters that may take a slot of the peer, of all sets that it belongs to.
-- @return list of tickets, oldest first
local function window(d, peer, sets, view)
    local out, most = {}, view.limits.queue_window
    for _, key in ipairs(sets) do
        local candidates, member = tickets.peers_of(d, key, view), false
        for i = 1, #candidates do
            member = member or candidates[i] == peer
        end
        if member then
            fleet.queued = tickets.length(d, key)
            tickets.oldest(d, key, most, function(ticket)
                if ticket.avoid and ticket.avoid[peer.id] then
                    return nil
                end
                return placement.may_take(peer, candidates, ticket, fleet)
            end, out)
        end
    end
    table.sort(out, function(a, b) return a.number < b.number end)
    for i = #out, most + 1, -1 do
        out[i] = nil
    end
    return out
end

--- Give a peer's free slots to those that wait. Under the lock.
local function match_peer(d, peer, view)
    local sets = tickets.active_sets(d)
    while #sets > 0 and slots.busy(peer.id) < fleet.usable(peer, fleet.now) do
        local waiting = window(d, peer, sets, view)
        if #waiting == 0 then
            return
        end
        local at = placement.pick(peer, waiting, fleet, view.limits.affinity_max_wait)
        if not grant(d, peer, waiting[at], view) then
            return
        end
        sets = tickets.active_sets(d)
    end
end

local function match_all(d, view)
    if tickets.is_empty(d) then
        return
    end
    fleet_now(view)
    for _, peer in ipairs(view.peers) do
        local condition = fleet.health[peer.id]
        if condition and condition.up and not view.drained[peer.id] then
            match_peer(d, peer, view)
        end
    end
end

--- A slot of the peer became free: give it to who waits.
-- @param peer
function M.match(peer)
    if tickets.is_empty(dict()) then
        return
    end
    local view = peers.view()
    local current = view and view.by_name[peer.name]
    if current and current.id == peer.id and not view.drained[peer.id] then
        fleet_now(view)
        lock.run(match_peer, current, view)
    end
end

-- Waiting

local function totals(d)
    local number, bytes = 0, 0
    for _, pid in ipairs(workers.list()) do
        number = number + (d:get(pid .. ":w") or 0)
        bytes = bytes + (d:get(pid .. ":wb") or 0)
    end
    return number, bytes
end

--- Seconds after which it is worth asking again: the time the queue needs at its present rate.
local function retry_after(d, waiting)
    local rate = drain_rate(d)
    if rate <= 0 then
        return 10
    end
    return math.max(1, math.min(60, math.ceil(waiting / rate)))
end

--- Seconds to tell a client that there was no place for.
function M.retry_after()
    local d = dict()
    return retry_after(d, (totals(d)))
end

--- A place in the order of arrival; a request keeps it when it has to wait again.
function M.ticket()
    return dict():incr("seq", 1, 0)
end

--- Take a free slot at once, if nobody older waits for it.
-- @param set {key, peers}
-- @return peer; or nil and "busy", "avoided" or "out"
function M.try(set, want)
    local d, view = dict(), peers.view()
    fleet_now(view)
    fleet.queued = tickets.length(d, set.key) + 1
    local peer, why = placement.choose(set.peers, want, fleet, clock)
    if not peer then
        return nil, why
    end
    if want.slotless then
        return peer
    end
    if not tickets.is_empty(d) then
        lock.run(match_peer, peer, view) -- whoever waits for this slot goes first
    end
    local alone = placement.parts_ways(want, fleet.now)
    if not slots.take(peer.id, health.usable_slots(peer, fleet.now), workers.pid, want.suspect, alone) then
        return nil, "busy"
    elseif peers.view() ~= view then -- drained in this very moment: whoever drained it may have counted already
        slots.put_back(peer.id, workers.pid, want.suspect)
        return nil, "busy"
    end
    return peer
end

local function enqueue(d, waiter, view, again)
    local set = waiter.set
    local ok, err = tickets.add(d, set, waiter.number, workers.pid, waiter.serial, waiter.want, again)
    if not ok then
        return nil, err
    end
    fleet_now(view)
    for i = 1, #set.peers do
        match_peer(d, set.peers[i], view)
    end
    return true
end

--- Hand the leader's work to another waiting request.
local function abdicate(serial)
    if leader == serial or leader == nil then -- nil: whom it was handed to has left before it could lead
        leader = nil
        local _, other = next(waiters)
        if other then
            other.semaphore:post(1)
        end
    end
end

local function uncount(d, waiter)
    local pid = workers.pid
    waiters[waiter.serial] = nil
    d:incr(pid .. ":w", -1)
    d:incr(pid .. ":wb", -waiter.bytes)
    abdicate(waiter.serial)
end

--- Give up a place: the client left, the deadline passed. Also right after a grant that nobody took note of yet.
-- @param waiter from join()
function M.leave(waiter)
    if waiter.over then
        return
    end
    waiter.over = true
    local view, freed = peers.view(), nil
    lock.run(function(d)
        local pid, serial = workers.pid, waiter.serial
        local granted = waiter.granted or d:get(pid .. ":g:" .. serial)
        tickets.remove(d, pid, serial)
        d:delete(pid .. ":g:" .. serial)
        tickets.tidy(d, waiter.set.key, (totals(d)))
        uncount(d, waiter)
        if granted then
            slots.put_back(granted, pid, waiter.want.suspect)
            freed = granted
        end
    end)
    for _, peer in ipairs(freed and view and view.peers or {}) do
        if peer.id == freed then
            M.match(peer)
        end
    end
end

--- Take a place in the queue.
-- @param number from ticket()
-- @param set {key, peers}
-- @param bytes that the request holds
-- @param again boolean: it had a place before, no limit holds for it
-- @return waiter; or nil, "full" and seconds after which to ask again
function M.join(number, set, want, bytes, again)
    local d, view = dict(), peers.view()
    if not again then
        local waiting, held = totals(d)
        if waiting >= view.limits.queue_length or held + bytes > view.limits.queue_bytes then
            return nil, "full", retry_after(d, waiting)
        end
    end
    local pid = workers.pid
    last_serial = last_serial + 1
    local waiter = {
        number = number, serial = last_serial, semaphore = semaphore.new(0), set = set, want = want, bytes = bytes, view = view,
    }
    waiters[last_serial] = waiter
    d:incr(pid .. ":w", 1, 0)
    d:incr(pid .. ":wb", bytes, 0)
    local ok, err = lock.run(enqueue, waiter, view, again)
    if not ok then
        ngx.log(ngx.ERR, "queue: ", err, "; a larger balancer_slots_dict_mb helps")
        M.leave(waiter)
        return nil, "full", retry_after(d, (totals(d)))
    end
    return waiter
end

local function read_mail()
    local d, pid = dict(), workers.pid
    local box = pid .. ":mail"
    while true do
        local serial = d:lpop(box)
        if not serial then
            return
        end
        local waiter, peer = waiters[serial], d:get(pid .. ":g:" .. serial)
        if waiter and peer then -- else the place was given up since
            waiter.granted = peer
            d:delete(pid .. ":g:" .. serial)
            waiter.semaphore:post(1)
        end
    end
end

--- A worker that was killed while it moved entries may have taken some of ours along: put back what is missing.
local function restore(d)
    local present, pid = {}, workers.pid
    for serial, waiter in pairs(waiters) do
        local set, number = waiter.set, waiter.number
        present[set.key] = present[set.key] or tickets.entries(d, set.key)
        local is_granted = waiter.granted or d:get(pid .. ":g:" .. serial)
        if not is_granted and not present[set.key][tickets.entry(number, pid, serial)] then
            tickets.add(d, set, number, pid, serial, waiter.want, true)
        end
    end
end

--- What the leader does for all of this worker.
local function lead(serial)
    leader = serial
    read_mail()
    local now = ngx.now()
    if now >= rematch_at then
        rematch_at = now + REMATCH
        local _, generation = workers.list()
        if generation ~= known_generation then
            known_generation = generation
            lock.run(restore)
        end
        local view = peers.view()
        lock.run(match_all, view)
        for _, waiter in pairs(waiters) do
            if waiter.view ~= view then
                waiter.view, waiter.changed = view, true
                waiter.semaphore:post(1)
            end
        end
    end
end

--- Is it no use to wait: only peers are left that failed this request, or none while there is another model to fall back to?
-- @return "avoided", "out" or nil
local function hopeless(waiter)
    local want = waiter.want
    if want.has_fallback or next(want.avoid) then
        local _, why = placement.choose(waiter.set.peers, want, fleet_now(peers.view()), placement.clock())
        if why == "avoided" or why == "out" and want.has_fallback then
            return why
        end
    end
    return nil
end

--- Wait for the slot.
-- @param waiter from join()
-- @param deadline ngx.now() value
-- @param watch function returning a reason to stop, or nil
-- @return peer id; or nil and "changed" (there is another routing table; the place is kept); or nil and "deadline", "avoided"
--   (only peers that failed the request are left), "out" (all peers are, and there is a fallback) or what watch() said, and the
--   place is given up
function M.wait(waiter, deadline, watch)
    local look_at = ngx.now() + LOOK
    while true do
        local leads = leader == nil or leader == waiter.serial
        if leads then
            lead(waiter.serial)
        end
        if waiter.granted then
            waiter.over = true
            uncount(dict(), waiter)
            return waiter.granted
        end
        local now = ngx.now()
        if now >= deadline then
            M.leave(waiter)
            return nil, "deadline"
        end
        if waiter.changed then
            waiter.changed = nil
            return nil, "changed"
        end
        if now >= look_at then
            look_at = now + LOOK
            local reason = watch() or hopeless(waiter)
            if reason then
                M.leave(waiter)
                return nil, reason
            end
        end
        local period = look_at - now
        if leads then
            period = #workers.list() > 1 and MAIL or ALONE
        end
        waiter.semaphore:wait(math.max(0.001, math.min(period, deadline - now)))
    end
end

--- Requests that wait, and their bytes; cheap enough to ask often.
function M.length()
    return totals(dict())
end

--- The queue, for GET /state and the live page.
-- @return {waiting = requests, bytes, oldest = seconds or nil, drain_rate = grants a second, sets = tickets.sets()}
function M.state()
    local d = dict()
    local waiting, bytes = totals(d)
    local since = waiting > 0 and tickets.oldest_since(d) or nil
    return {
        waiting = waiting, bytes = bytes, oldest = since and ngx.now() - since, drain_rate = drain_rate(d),
        sets = json.list(lock.run(tickets.sets)),
    }
end

return M
