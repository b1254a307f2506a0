-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Counting what happens: requests, events.
--
-- A request must not pay for being counted, so a worker adds up in a table of its own and hands the sums to the shared dict
-- FLUSH seconds later (as nginx-lua-prometheus does with its sync_interval). A worker that is killed takes at most that much with
-- it; one that ends flushes. Every label comes from the routing table or from a list here, so their number is bounded.
--
-- What proxy.lua calls in log_by_lua: observe(ctx), with these fields of ctx (nil where it doesn't apply):
--   start (ngx.now() at the beginning), status, model (as the table has it), peer (name), key (name), ttfb (s from start),
--   waited (s in the queue), usage (usage.find), affinity ("hit" or "miss"), error (code)
-- What anybody calls: event("retry", reason), event("ejection" | "return", peer name, reason), event(kind) for the rest.

local cjson = require "cjson.safe"
local clear = require "table.clear"

local peers = require "llm_cluster.peers"

local M = {}

local DICT = "llm_metrics"
local FLUSH = 0.5       -- seconds
local EVENTS_KEPT = 20  -- ejections and returns that the page can show
local SEPARATOR = "\t"  -- names have no control characters

--- Upper bounds of the histograms' buckets, seconds: from a cached embedding to the longest generation.
local BUCKETS = { 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600 }
M.BUCKETS = BUCKETS

--- What is counted: the first part of a dict key → its name for Prometheus, and the meaning of the key's other parts.
-- A histogram's last part is a bucket's number or "sum".
M.FAMILIES = {
    requests = {
        name = "requests_total", type = "counter", labels = { "model", "peer", "status" },
        help = "Requests by model, peer and HTTP status (499: the client left).",
    },
    ttfb = {
        name = "time_to_first_byte_seconds", type = "histogram", labels = { "model" },
        help = "From a request's arrival to the first byte of its answer, of requests that a peer answered.",
    },
    duration = {
        name = "request_duration_seconds", type = "histogram", labels = { "model" },
        help = "From a request's arrival to the last byte of its answer, of requests that a peer answered.",
    },
    wait = {
        name = "queue_wait_seconds", type = "histogram", labels = {},
        help = "Time that requests waited for a free slot, those that did not wait as 0.",
    },
    tokens = {
        name = "tokens_total", type = "counter", labels = { "model", "kind" },
        help = "Tokens as the engines report them; the cached ones are part of the prompt's.",
    },
    affinity = {
        name = "affinity_total", type = "counter", labels = { "result" },
        help = "Requests that went to a peer that holds a prefix of theirs (hit) or to another (miss).",
    },
    keys = {
        name = "key_requests_total", type = "counter", labels = { "key", "status" },
        help = "Requests by API key and class of status.",
    },
    errors = {
        name = "errors_total", type = "counter", labels = { "code" },
        help = "Requests that ended with an error, by its code; also broken streams, whose status is 200.",
    },
    retries = {
        name = "retries_total", type = "counter", labels = { "reason" },
        help = "Further tries of requests that had been given to a peer, by what went wrong there.",
    },
    ejections = { name = "ejections_total", type = "counter", labels = { "peer" }, help = "Times that a peer was taken out." },
    returns = { name = "returns_total", type = "counter", labels = { "peer" }, help = "Times that a peer came back." },
    events = { name = "events_total", type = "counter", labels = { "kind" }, help = "Other things that happened." },
}

--- Kinds of events that have a family of their own, with one label.
local EVENT_FAMILIES = { ejection = "ejections", ["return"] = "returns", retry = "retries" }

--- Codes of errors that are time-outs: waiting for a slot, for the first byte, between two events.
local TIMED_OUT = { queue_timeout = true, no_node_available = true, first_byte_timeout = true, stream_idle = true }

--- Statuses that are counted by themselves; another one counts as its class.
local STATUSES = {}
for _, code in ipairs {
    200, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 429, 499, 500, 501, 502, 503, 504, 507, 529,
} do
    STATUSES[code] = tostring(code)
end

local pending = {} -- dict key → what this worker has to add
local armed = false

local function dict()
    return ngx.shared[DICT]
end

--- Hand over what this worker has counted.
function M.flush()
    armed = false
    local d = dict()
    for key, n in pairs(pending) do
        d:incr(key, n, 0)
    end
    clear(pending)
end
local flush = M.flush

local function add(key, n)
    pending[key] = (pending[key] or 0) + n
    if not armed then
        armed = true
        if not ngx.timer.at(FLUSH, flush) then -- a worker that ends starts no timers
            flush()
        end
    end
end

-- Dict keys are strings; making one for each request would cost more than the counting.

local function class_of(status)
    return math.floor(status / 100) .. "xx"
end

local function joined(...)
    return table.concat({ ... }, SEPARATOR)
end

--- A table that makes what it doesn't have yet.
local function made_by(make)
    return setmetatable({}, {
        __index = function(t, name)
            local value = make(name)
            rawset(t, name, value)
            return value
        end,
    })
end

local function histogram_keys(family)
    local keys = { sum = joined(family, "sum") }
    for i = 1, #BUCKETS + 1 do
        keys[i] = joined(family, i)
    end
    return keys
end

local STATUS = made_by(function(status) return STATUSES[status] or class_of(status) end)
local ERRORS = made_by(function(code) return joined("errors", code:find("^peer_%d") and "peer_5xx" or code) end)
local AFFINITY = { hit = joined("affinity", "hit"), miss = joined("affinity", "miss") }
local WAIT = histogram_keys("wait")

--- Keys of one model: {ttfb, duration, prompt, completion, cached, [peer][status]}
local function model_keys(model)
    local keys = made_by(function(peer)
        return made_by(function(status) return joined("requests", model, peer, STATUS[status]) end)
    end)
    keys.ttfb, keys.duration = histogram_keys(joined("ttfb", model)), histogram_keys(joined("duration", model))
    keys.tokens = {
        prompt = joined("tokens", model, "prompt"), completion = joined("tokens", model, "completion"),
        cached = joined("tokens", model, "cached"),
    }
    return keys
end

local function key_keys(key)
    return made_by(function(status) return joined("keys", key, class_of(status)) end)
end

--- Keys of one peer's sums.
local PEER_SUMS = { "requests", "answered", "duration", "timed_out" }
local function peer_keys(peer)
    local found = {}
    for _, name in ipairs(PEER_SUMS) do
        found[name] = joined("#peer", peer, name)
    end
    return found
end

local models, keys, of_peers, known_view -- caches for the table in force

local function caches()
    local view = peers.view()
    if not models or view ~= known_view then
        models, keys, of_peers, known_view = made_by(model_keys), made_by(key_keys), made_by(peer_keys), view
    end
    return view
end

local function observe_in(histogram, seconds)
    local i = 1
    while BUCKETS[i] and seconds > BUCKETS[i] do
        i = i + 1
    end
    add(histogram[i], 1)
    if seconds > 0 then
        add(histogram.sum, seconds)
    end
end

local function observe_tokens(found, known)
    local prompt, completion, cached = found.prompt, found.completion, found.cached
    if prompt and prompt > 0 then
        add(known.prompt, prompt)
        add("#prompt_tokens", prompt)
    end
    if completion and completion > 0 then
        add(known.completion, completion)
        add("#completion_tokens", completion)
    end
    if cached and cached > 0 then
        add(known.cached, cached)
        add("#cached_tokens", cached)
    end
end

--- Count a request for the peer that held it last.
local function observe_peer(known, total, timed_out)
    add(known.requests, 1)
    if timed_out then
        add(known.timed_out, 1)
    end
    if total then
        add(known.answered, 1)
        add(known.duration, total)
    end
end

--- Count a request that is over.
function M.observe(ctx)
    local view = caches()
    local status, err = ctx.status or ngx.status, ctx.error
    local model, peer = ctx.model, ctx.peer
    -- The table may have changed since: what it doesn't know any more counts without a name.
    model = model and view and view.by_model[model] and model or ""
    peer = peer and view and view.by_name[peer] and peer or ""
    local known = models[model]
    add(known[peer][status], 1)
    if ctx.key then
        add(keys[ctx.key][status], 1)
    end
    if err then
        add(ERRORS[err], 1)
    end
    if not ctx.model then
        return -- health checks, lists of models, requests that could not be read
    end
    local total = ctx.ttfb and ngx.now() - ctx.start
    local timed_out = err and TIMED_OUT[err]
    if peer ~= "" then
        observe_peer(of_peers[peer], total, timed_out)
    end
    add("#requests", 1)
    if timed_out then
        add("#timed_out", 1)
    end
    if status >= 500 or err and status < 400 then
        add("#failed", 1)
    end
    if total then
        observe_in(known.ttfb, ctx.ttfb)
        observe_in(known.duration, total)
        add("#answered", 1)
        add("#duration", total)
        add("#first_byte", ctx.ttfb)
    end
    if ctx.waited and err ~= "queue_full" then
        observe_in(WAIT, ctx.waited)
    end
    if ctx.usage then
        observe_tokens(ctx.usage, known.tokens)
    end
    local affinity = ctx.affinity
    if affinity then
        add(AFFINITY[affinity], 1)
        add(affinity == "hit" and "#hits" or "#misses", 1)
    end
end

--- Something happened.
-- @param kind "ejection", "return" (a = peer's name, b = reason in words), "retry" (a = reason, a code), or another code
function M.event(kind, a, b)
    local family = EVENT_FAMILIES[kind]
    if not family then
        return add(joined("events", kind), 1)
    end
    add(joined(family, a), 1)
    if kind ~= "retry" then
        local d = dict()
        local n = d:incr("!count", 1, 0)
        d:set("!" .. n % EVENTS_KEPT, cjson.encode { n = n, at = ngx.now(), kind = kind, peer = a, reason = b })
    end
end

--- The latest ejections and returns, newest first: list of {n, at, kind, peer, reason}.
function M.latest()
    local d, out = dict(), {}
    for i = 0, EVENTS_KEPT - 1 do
        out[#out + 1] = cjson.decode(d:get("!" .. i) or "null")
    end
    for i = #out, 1, -1 do
        if type(out[i]) ~= "table" then
            table.remove(out, i)
        end
    end
    table.sort(out, function(x, y) return x.n > y.n end)
    return out
end

--- Sums over all models since the start, by name.
local TOTALS = {
    "requests", "failed", "timed_out", "answered", "duration", "first_byte", "prompt_tokens", "completion_tokens",
    "cached_tokens", "hits", "misses",
}
function M.totals()
    flush()
    local d, out = dict(), {}
    for _, name in ipairs(TOTALS) do
        out[name] = d:get("#" .. name) or 0
    end
    return out
end

--- The sums of one peer: of the requests that it was the last to hold.
function M.peer_totals(peer)
    local d, out = dict(), {}
    for name, key in pairs(peer_keys(peer)) do
        out[name] = d:get(key) or 0
    end
    return out
end

--- The table has the peer no more: one that comes later under its name begins anew.
function M.forget_peer(peer)
    local d = dict()
    for _, key in pairs(peer_keys(peer)) do
        d:delete(key)
    end
end

local function parts_of(key)
    local parts = {}
    for part in (key .. SEPARATOR):gmatch("([^\t]*)\t") do
        parts[#parts + 1] = part
    end
    return parts
end

--- Does the table still have what these labels name?
local function current(family, parts, names)
    for i, label in ipairs(family.labels) do
        local of_label = names[label]
        if of_label and parts[i + 1] ~= "" and not of_label[parts[i + 1]] then
            return false
        end
    end
    return true
end

--- Everything counted, for Prometheus; what names a model, peer or key that the table has no more is forgotten.
-- @return {family = list of {parts = list of strings (the family first), value}}
function M.read()
    flush()
    local view = peers.view()
    local names = { model = view and view.by_model or {}, peer = view and view.by_name or {}, key = {} }
    for _, key in ipairs(view and view.table.keys or {}) do
        names.key[key.name] = true
    end
    local d, out = dict(), {}
    for _, key in ipairs(d:get_keys(0)) do
        local parts = parts_of(key)
        local family = M.FAMILIES[parts[1]]
        if family and not current(family, parts, names) then
            d:delete(key)
        elseif family then
            local list = out[parts[1]] or {}
            out[parts[1]] = list
            list[#list + 1] = { parts = parts, value = d:get(key) or 0 }
        end
    end
    return out
end

return M
