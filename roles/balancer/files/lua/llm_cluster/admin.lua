-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The admin API, on a Unix socket that only root can reach.
--
--   GET  /state                 peers with health, drain marks, what they work on and what the last minute was like; queue, keys'
--                               limits, workers
--   GET  /routing               the table in force
--   PUT  /routing               200 {"changed", "version"}; 400 with every reason, the old table stays
--   POST /peers/NAME/drain      {"owner", "reason"}: NAME is a node (all its peers) or a peer
--   POST /peers/NAME/resume     {"owner"}: removes that owner's mark only

local cjson = require "cjson.safe"
local body = require "llm_cluster.body"
local health = require "llm_cluster.health"
local history = require "llm_cluster.history"
local json = require "llm_cluster.json"
local limits = require "llm_cluster.limits"
local metrics = require "llm_cluster.metrics"
local peers = require "llm_cluster.peers"
local queue = require "llm_cluster.queue"
local slots = require "llm_cluster.slots"

local M = {}

local function answer(status, value)
    local text = type(value) == "string" and value or json.encode(value)
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #text + 1
    ngx.print(text, "\n")
end

local function refuse(status, message, reasons)
    answer(status, { error = { message = message, type = "invalid_request_error", code = "refused", reasons = reasons } })
end

--- One change at a time, over all workers.
local function exclusively(change)
    local dict = ngx.shared.llm_state
    for _ = 1, 200 do
        if dict:add("admin_lock", ngx.worker.pid(), 5) then
            local ok, err = pcall(change)
            dict:delete("admin_lock")
            if not ok then
                error(err, 0)
            end
            return
        end
        ngx.sleep(0.02)
    end
    refuse(503, "Another change is under way.")
end

local list = json.list

local function names_of(set)
    local out = {}
    for name in pairs(set or {}) do
        out[#out + 1] = name
    end
    table.sort(out)
    return list(out)
end

--- Every mark, also those on names that the table has no more.
local function marks_of(view)
    local out = {}
    for name, owners in pairs(view and view.drains or {}) do
        for owner, mark in pairs(owners) do
            out[#out + 1] = { name = name, owner = owner, reason = mark.reason, since = mark.since }
        end
    end
    table.sort(out, function(a, b) return a.name .. "\n" .. a.owner < b.name .. "\n" .. b.owner end)
    return list(out)
end

--- What holds a peer's slots, oldest first: {id, model, key, seconds, ending = only the engine is still at it}.
local function running(requests, now)
    local out = {}
    for i, request in ipairs(requests or {}) do
        out[i] = {
            id = request.id, model = request.model, key = request.key, seconds = math.max(0, now - request.since),
            ending = request.ending,
        }
    end
    return list(out)
end

--- Of what the last minute says, what is told here; nil where nobody knows.
local function minute_of(step)
    return step and {
        requests_per_minute = step.requests_per_minute, answered_per_minute = step.answered_per_minute, latency = step.latency,
        timed_out = step.timed_out,
    }
end

--- How many requests wait that each peer may take, by its id.
local function waiting_for(sets)
    local out = {}
    for _, set in ipairs(type(sets) == "table" and sets or {}) do -- an empty list is text already
        for _, id in ipairs(set.peers) do
            out[id] = (out[id] or 0) + set.waiting
        end
    end
    return out
end

local function state_of(view, peer, seen, requests, now)
    local marks = peers.drains_of(view, peer)
    local why, since, hold = health.why(peer.id)
    local condition = health.state(peer.id)
    if #marks > 0 then
        why = "drained by " .. marks[1].owner .. (marks[1].reason ~= "" and ": " .. marks[1].reason or "")
    end
    return {
        name = peer.name, node = peer.node, engine = peer.engine, address = peer.address, port = peer.port,
        models = list(peer.models), lacks = names_of(seen.lacks), slots = peer.slots, usable = seen.usable,
        weight = peer.weight, backup = peer.backup, state = #marks > 0 and "drained" or condition, health = condition,
        reason = why or "", since = since, held_down_until = hold, resting = health.is_resting(peer.id), slow = seen.slow,
        busy = slots.busy(peer.id), ending = slots.ending(peer.id), in_flight = running(requests, now), drains = list(marks),
    }
end

--- What GET /state answers.
function M.state()
    local view, now = peers.view(), ngx.now()
    local seen, requests = health.snapshot(), slots.in_flight()
    local points, queued = history.points(history.now()), queue.state()
    local minutes, waiting = history.last_minute_of_peers(points), waiting_for(queued.sets)
    local out, ids = {}, {}
    for i, peer in ipairs(view and view.peers or {}) do
        ids[i] = peer.id
        out[i] = state_of(view, peer, seen[peer.id] or {}, requests[peer.id], now)
        out[i].minute, out[i].waiting = minute_of(minutes[peer.name]), waiting[peer.id] or 0
    end
    return {
        version = view and view.version or 0, default_model = view and view.default_model, policy = view and view.table.policy,
        peers = list(out), drains = marks_of(view), queue = queued, minute = minute_of(history.last_minute(points)),
        keys = list(limits.state(view and view.table.keys or {})),
        workers = list(slots.by_worker(ids)), prober = ngx.shared.llm_state:get("lease"),
    }
end

local function put_routing(text)
    local before = peers.view()
    local done, reasons, status = peers.put(text)
    if not done then
        return refuse(status, "The routing table is refused: " .. table.concat(reasons, "; "), reasons)
    end
    local now = peers.view()
    for name in pairs(before and before.by_name or {}) do
        if not now.by_name[name] then
            metrics.forget_peer(name)
        end
    end
    health.greet(now)
    answer(200, done)
end

local function mark(name, action, text)
    local asked = text == "" and {} or cjson.decode(text)
    if type(asked) ~= "table" then
        return refuse(400, "The body is not a JSON object.")
    end
    local owner = asked.owner
    if owner == nil or owner == cjson.null then
        owner = "operator"
    end
    local reason = asked.reason
    if reason == nil or reason == cjson.null then
        reason = ""
    end
    if type(owner) ~= "string" or not owner:find("^[%w][%w ._:@/-]*$") or #owner > 200 then
        return refuse(400, "owner must be a name.")
    elseif type(reason) ~= "string" or #reason > 1000 then
        return refuse(400, "reason must be a text of at most 1000 bytes.")
    end
    local changed, err, status =
        peers.mark(name, owner, action == "drain" and { reason = reason, since = ngx.time() } or nil)
    if changed == nil then
        return refuse(status, err)
    end
    local view, found = peers.view(), {}
    for _, peer in ipairs(view.peers) do
        if peer.name == name or peer.node == name then
            found[#found + 1] = {
                name = peer.name, busy = slots.busy(peer.id), drains = list(peers.drains_of(view, peer)),
                state = peers.is_drained(view, peer) and "drained" or health.state(peer.id),
            }
        end
    end
    answer(200, { changed = changed, peers = list(found) })
end

--- Serve one admin request.
function M.run()
    local method, path = ngx.req.get_method(), ngx.var.uri
    if method == "GET" and path == "/state" then
        return answer(200, M.state())
    elseif method == "GET" and path == "/routing" then
        local text = ngx.shared.llm_state:get("routing")
        if not text then
            return refuse(404, "No routing table was given yet.")
        end
        return answer(200, text)
    elseif method == "PUT" and path == "/routing" then
        local text = body.read()
        return exclusively(function() put_routing(text) end)
    elseif method == "POST" then
        local name, action = path:match("^/peers/(.+)/(%a+)$")
        if action == "drain" or action == "resume" then
            local text = body.read()
            return exclusively(function() mark(name, action, text) end)
        end
    end
    refuse(404, "No such admin call: " .. method .. " " .. path)
end

return M
