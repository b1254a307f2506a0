-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- What a person and a monitoring system may see: /metrics and /cluster.
--
-- nginx.conf lets only `balancer_status_allow` come here. Nothing secret is shown: no key but its name, no prompt, no address.

local cjson = require "cjson.safe"

local errors = require "llm_cluster.errors"
local health = require "llm_cluster.health"
local history = require "llm_cluster.history"
local json = require "llm_cluster.json"
local metrics = require "llm_cluster.metrics"
local peers = require "llm_cluster.peers"
local prometheus = require "llm_cluster.prometheus"
local queue = require "llm_cluster.queue"
local slots = require "llm_cluster.slots"
local workers = require "llm_cluster.workers"

local M = {}

local SHORTEST = 5 -- seconds that a chart's last step must be long, for its rate to mean something
local CACHE = 1 -- seconds that a worker gives the same state: many viewers cost no more than one
local DICTS = { "llm_state", "llm_slots", "llm_prefix", "llm_metrics" }

--- The page lies beside this file.
local function read_page()
    local path = debug.getinfo(1, "S").source:match("^@(.*/)") .. "page.html"
    local file = assert(io.open(path, "rb"))
    local text = file:read("*a")
    file:close()
    return text
end
local page = read_page()

local function answer(content_type, text)
    local header = ngx.header
    header["Content-Type"] = content_type
    header["Content-Length"] = #text
    header["Cache-Control"] = "no-store"
    header["X-Content-Type-Options"] = "nosniff"
    ngx.print(text)
end

-- /metrics

local function flag(condition)
    return condition and 1 or 0
end

--- What is true at this moment.
local function gauges()
    local view = peers.view()
    local out = {}
    local function gauge(name, help, labels)
        out[#out + 1] = { name = name, help = help, labels = labels, values = {} }
        return out[#out].values
    end
    local info = gauge("peer_info", "The peers of the routing table.", { "peer", "node", "engine" })
    local up = gauge("peer_up", "1 if the peer answers, else 0.", { "peer" })
    local drained = gauge("peer_drained", "1 if the peer is drained, else 0.", { "peer" })
    local slow = gauge("peer_slow", "1 if the peer is slow, so only a last resort, else 0.", { "peer" })
    local total = gauge("slots", "Requests that the peer may work on at a time.", { "peer" })
    local usable = gauge("usable_slots", "Slots open to requests: fewer while a peer comes back.", { "peer" })
    local busy = gauge("in_flight", "Slots in use.", { "peer" })
    local ending = gauge("ending", "Slots in use only because the engine has not ended yet, after the client left.", { "peer" })
    local snapshot = health.snapshot()
    for i, peer in ipairs(view and view.peers or {}) do
        local id, name = peer.id, peer.name
        info[i] = { name, peer.node, peer.engine, value = 1 }
        up[i] = { name, value = flag(health.is_up(id)) }
        drained[i] = { name, value = flag(peers.is_drained(view, peer)) }
        slow[i] = { name, value = flag(snapshot[id] and snapshot[id].slow > 0) }
        total[i] = { name, value = peer.slots }
        usable[i] = { name, value = snapshot[id] and snapshot[id].usable or 0 }
        busy[i] = { name, value = slots.busy(id) }
        ending[i] = { name, value = slots.ending(id) }
    end
    local waiting = queue.state()
    gauge("queue_length", "Requests that wait for a free slot.", {})[1] = { value = waiting.waiting }
    gauge("queue_bytes", "Bytes of the requests that wait.", {})[1] = { value = waiting.bytes }
    gauge("queue_oldest_seconds", "How long the oldest of them has waited.", {})[1] = { value = waiting.oldest or 0 }
    gauge("routing_table_version", "Number of the routing table in force.", {})[1] = { value = view and view.version or 0 }
    gauge("workers", "Worker processes that serve.", {})[1] = { value = #workers.list() }
    local size = gauge("shared_memory_bytes", "Size of a shared dict.", { "dict" })
    local free = gauge("shared_memory_free_bytes", "Whole pages of it that were never used or are free again.", { "dict" })
    for i, name in ipairs(DICTS) do
        size[i] = { name, value = ngx.shared[name]:capacity() }
        free[i] = { name, value = ngx.shared[name]:free_space() }
    end
    return out
end

-- /cluster/state

--- A word for the peer's condition, and why, in words.
local function condition(view, peer, seen)
    local marks = peers.drains_of(view, peer)
    local why, since = health.why(peer.id)
    if #marks > 0 then
        local mark = marks[1]
        return "drained", "by " .. mark.owner .. (mark.reason ~= "" and ": " .. mark.reason or ""), mark.since
    end
    local state = health.state(peer.id)
    if state ~= "up" then
        return state, why or "", since
    elseif seen.returned then
        return "returning", seen.usable .. " of " .. peer.slots .. " slots are open again", since
    elseif health.is_resting(peer.id) then
        return "resting", "it said that it is busy"
    elseif (seen.slow or 0) > 0 then
        return "slow", string.format(
            "slower than the others: asked only once a request has waited as long as it would lose there, %.1f s", seen.slow)
    end
    return "up", "", since
end

--- Models of the peer that it doesn't have, as its own list says.
local function missing(seen)
    local out = {}
    for name in pairs(seen.lacks or {}) do
        out[#out + 1] = name
    end
    table.sort(out)
    return json.list(out)
end

local function nodes_of(view)
    local nodes, by_name = {}, {}
    local snapshot = health.snapshot()
    for _, peer in ipairs(view and view.peers or {}) do
        local node = by_name[peer.node]
        if not node then
            node = { name = peer.node, peers = {} }
            by_name[peer.node], nodes[#nodes + 1] = node, node
        end
        local seen = snapshot[peer.id] or {}
        local state, why, since = condition(view, peer, seen)
        node.peers[#node.peers + 1] = {
            name = peer.name, engine = peer.engine, models = peer.models, missing = missing(seen), slots = peer.slots,
            busy = slots.busy(peer.id), ending = slots.ending(peer.id), load = history.load(peer.id), backup = peer.backup,
            state = state, reason = why, since = since,
        }
    end
    return json.list(nodes)
end

--- The charts: one number a point, null where nothing happened.
local function charts(points)
    local out = { at = {}, requests_per_minute = {}, latency = {}, timed_out = {}, waiting = {} }
    local last = #points
    if last > 2 and points[last].at - points[last - 1].at < SHORTEST then
        last = last - 1
    end
    for i = 2, last do
        local from, to = points[i - 1], points[i]
        local n, step = i - 1, history.between(from, to)
        out.at[n], out.waiting[n] = to.at, to.waiting
        out.requests_per_minute[n] = step.requests_per_minute
        out.latency[n], out.timed_out[n] = step.latency or cjson.null, step.timed_out or cjson.null
    end
    for name, list in pairs(out) do
        out[name] = json.list(list)
    end
    return out
end

local function state()
    local view = peers.view()
    local now = history.now()
    local points = history.points(now)
    local waiting = queue.state()
    local events = metrics.latest()
    return json.encode {
        balancer = ngx.var.hostname, now = now.at, window = history.WINDOW, version = view and view.version or 0,
        nodes = nodes_of(view), minute = history.last_minute(points), charts = charts(points), events = json.list(events),
        queue = {
            waiting = waiting.waiting, oldest = waiting.oldest, drain_rate = waiting.drain_rate,
            most = view and view.limits.queue_length, timeout = view and view.limits.queue_timeout,
        },
    }
end

local cached, cached_at

--- GET /cluster/state
function M.state()
    local now = ngx.now()
    if not cached or now - cached_at >= CACHE or now < cached_at then
        cached, cached_at = state(), now
    end
    return answer("application/json", cached)
end

-- Pages

--- GET /metrics
function M.metrics()
    return answer("text/plain; version=0.0.4; charset=utf-8", prometheus.text(metrics.read(), gauges()))
end

--- GET /cluster
function M.page()
    local nonce = ngx.var.request_id
    local header = ngx.header
    header["Content-Security-Policy"] = "default-src 'none'; script-src 'nonce-" .. nonce .. "'; style-src 'nonce-" .. nonce
        .. "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    header["Referrer-Policy"] = "no-referrer"
    return answer("text/html; charset=utf-8", (page:gsub("NONCE", nonce)))
end

local PAGES = { ["/metrics"] = M.metrics, ["/cluster"] = M.page, ["/cluster/"] = M.page, ["/cluster/state"] = M.state }

--- content_by_lua
function M.run()
    local method, path = ngx.req.get_method(), ngx.var.uri
    if method == "HEAD" then -- as in proxy.lua
        ngx.req.discard_body()
    end
    local serve = (method == "GET" or method == "HEAD") and PAGES[path]
    if serve then
        return serve()
    end
    return errors.send(errors.new(404, "not_found", "There is nothing here for " .. method .. " " .. path .. "."), "openai")
end

return M
