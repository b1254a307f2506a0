-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The life of one request, from top to bottom:
-- authenticate → parse → claim a slot → exchange with the peer → stream back → release → record.
--
-- Nothing is sent to the client before a whole answer, or a stream's first whole event, is in hand: until then a request that
-- lost its node is placed again.

local errors = require "llm_cluster.errors"
local events = require "llm_cluster.events"
local exchange = require "llm_cluster.exchange"
local health = require "llm_cluster.health"
local keys = require "llm_cluster.keys"
local lists = require "llm_cluster.lists"
local peers = require "llm_cluster.peers"
local placement = require "llm_cluster.placement"
local proc = require "llm_cluster.proc"
local request = require "llm_cluster.request"
local slots = require "llm_cluster.slots"
local surface = require "llm_cluster.surface"

local M = { peer_header = true }

local MAX_FAILURES = 2       -- peers that may hold a failing request
local CLIENT_LEFT = 499
local LOOK = 0.25            -- seconds between two looks at the client's connection
local AFTER_END = 1          -- seconds that a peer may take to end an answer whose end marker was seen
local AGAIN = 0.2            -- seconds before the only peer of a model is tried again
local RETRY_AFTER = 2        -- seconds, told to clients when there was no slot

local FORWARDED = { -- request headers that a peer gets, by nginx variable
    { "Accept", "http_accept" }, { "User-Agent", "http_user_agent" }, { "OpenAI-Beta", "http_openai_beta" },
    { "Anthropic-Version", "http_anthropic_version" }, { "Anthropic-Beta", "http_anthropic_beta" },
}
local RETURNED = { -- response headers that a client gets
    "content-type", "content-encoding", "retry-after", "openai-processing-ms", "openai-version",
}

local clock = placement.clock()

local function send_json(status, text)
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #text + 1
    ngx.print(text, "\n")
end

local function fail(ctx, err)
    ctx.error = err.code
    return errors.send(err, ctx.api)
end

local function client_left()
    ngx.exit(CLIENT_LEFT)
end

local function release(ctx)
    slots.release(ctx.claim)
    ctx.claim = nil
end

-- Authenticate

--- @return true, or nil and an error
local function authenticate(ctx, view)
    local var = ngx.var
    local presented = keys.presented(var.http_authorization, ctx.api == "messages" and var.http_x_api_key or nil)
    ctx.key = keys.name_of(view.table.keys, presented)
    if ctx.key or not view.table.require_key then
        return true
    end
    local message = presented and "This API key is not known here."
        or "An API key is needed: send the header 'Authorization: Bearer KEY'."
    return nil, errors.new(401, "invalid_api_key", message)
end

-- Parse

local function too_large(most)
    return errors.new(413, "request_too_large", "The body is larger than " .. most .. " bytes.", { should_retry = false })
end

--- The body as one string. @return string, or nil and an error
local function read_body(view)
    if ngx.req.http_version() >= 2 and not ngx.var.http_content_length then
        return nil, errors.new(411, "length_required", "Over HTTP/2 a Content-Length is needed.")
    end
    ngx.req.read_body()
    local text = ngx.req.get_body_data()
    if not text then
        local name = ngx.req.get_body_file()
        local file = name and io.open(name, "rb")
        if file then
            text = file:read("*a")
            file:close()
        end
    end
    if text and #text > view.limits.max_body_bytes then
        return nil, too_large(view.limits.max_body_bytes)
    end
    return text or ""
end

local function unknown_model(view, asked)
    local known = #view.models > 0 and table.concat(view.models, ", ") or "none"
    return errors.new(404, "model_not_found", "There is no model '" .. asked .. "'. Known models: " .. known .. ".",
        { param = "model" })
end

--- Read the request, settle its model. @return true, or nil and an error
local function parse(ctx, view, route)
    local body, err = read_body(view)
    if not body then
        return nil, err
    end
    local parsed, words, param = request.parse(body, route)
    if not parsed then
        return nil, errors.new(400, "invalid_request", words, { param = param })
    end
    ctx.stream = parsed.stream
    local asked = parsed.model or view.default_model
    if not asked then
        return nil, errors.new(400, "model_required", "Say which 'model' is wanted.", { param = "model" })
    end
    ctx.asked = asked
    if not peers.resolve_model(view.by_model, asked) then
        return nil, unknown_model(view, asked)
    end
    ctx.pieces = request.pieces(parsed, not parsed.model and asked or nil)
    ctx.length = 0
    for _, piece in ipairs(ctx.pieces) do
        ctx.length = ctx.length + #piece
    end
    return true
end

-- Claim a slot

--- Peers that may take the request, as placement wants them. @return list, or nil if the model is gone
local function candidates(ctx, view)
    local name = peers.resolve_model(view.by_model, ctx.asked)
    if not name then
        return nil
    end
    local out = {}
    for _, peer in ipairs(view.by_model[name]) do
        if not ctx.route.engine or peer.engine == ctx.route.engine then
            local id = peer.id
            out[#out + 1] = {
                peer = peer, busy = slots.busy(id), up = health.is_up(id), drained = peers.is_drained(view, peer),
                resting = health.is_resting(id), avoid = ctx.avoid[id],
            }
        end
    end
    return out
end

--- Sleep, and leave if the client did.
local function pause(ctx, seconds)
    ngx.sleep(seconds)
    local now = ngx.now()
    if now - ctx.looked >= LOOK then
        ctx.looked = now
        if proc.client_left() then
            client_left()
        end
    end
end

--- Wait for a slot until ctx.deadline. Sets ctx.claim.
-- @return peer; or nil and "gone", "avoided", "busy" or "out"
local function place(ctx)
    local delay = 0.005
    while true do
        local list = candidates(ctx, peers.view())
        if not list then
            return nil, "gone"
        end
        local chosen, why = placement.choose(list, clock, ctx.route.slotless)
        if chosen then
            local peer = chosen.peer
            ctx.claim = ctx.route.slotless and { id = peer.id, peer = peer, slotless = true } or slots.claim(peer)
            if ctx.claim then
                return peer
            end
        elseif why == "avoided" then
            return nil, why
        end
        if ngx.now() >= ctx.deadline then
            return nil, why or "busy"
        end
        pause(ctx, delay)
        delay = math.min(delay * 1.5, 0.025)
    end
end

-- Exchange

local function head_for(ctx, peer)
    local lines = {
        "POST " .. ctx.route.path .. " HTTP/1.1", "Host: " .. peer.host .. ":" .. peer.port, "Content-Type: application/json",
        "Content-Length: " .. ctx.length, "X-Request-Id: " .. ctx.id,
    }
    for _, header in ipairs(FORWARDED) do
        local value = ngx.var[header[2]]
        if value and value ~= "" then
            lines[#lines + 1] = header[1] .. ": " .. value
        end
    end
    lines[#lines + 1] = "\r\n"
    return table.concat(lines, "\r\n")
end

--- Connect, send, read the head. A pooled connection that fails before any byte is no failure: once more on a fresh one.
-- @return connection and head; or nil, an error word and details
local function call(ctx, peer, limits, watch)
    local head_text = head_for(ctx, peer)
    local fresh = false
    while true do
        local connection, err, detail = exchange.connect(peer, limits.connect_timeout, fresh)
        if not connection then
            return nil, err, detail
        end
        ctx.first_byte_by = ngx.now() + limits.first_byte_timeout
        local ok, head
        ok, err = connection:send(head_text, ctx.pieces, watch)
        if ok then
            head, err, detail = connection:read_head(ctx.first_byte_by, watch)
            if head then
                return connection, head
            end
        end
        connection:close()
        if err ~= "closed" or not connection.reused or connection.received then
            return nil, err, detail
        end
        fresh = true
    end
end

local function set_headers(ctx, peer, head)
    local header = ngx.header
    ngx.status = head.status
    for _, name in ipairs(RETURNED) do
        header[name] = head.headers[name]
    end
    if M.peer_header then
        header["X-LLM-Peer"] = peer.name
    end
    ctx.ttfb = ngx.now() - ctx.start
end

--- Send what is buffered; leave if the client did.
local function flush(connection)
    local ok = ngx.flush(true)
    if not ok then
        connection:close()
        client_left()
    end
end

-- Stream back

--- Bytes until the first whole event. @return text; or nil, an error word and details
local function first_event(ctx, connection, splitter, limits, watch)
    local text = ""
    while not splitter.real do
        local idle = math.max(0, ctx.first_byte_by - ngx.now())
        local piece, err, detail = connection:read_body(math.min(idle, limits.first_byte_timeout), watch)
        if not piece then
            if not err then
                text = text .. splitter:finish()
                if splitter.real then
                    return text
                end
            end
            return nil, err or "closed", detail or "its stream was empty"
        end
        local whole
        whole, err = splitter:feed(piece)
        if not whole then
            return nil, "garbage", err
        end
        text = text .. whole
    end
    return text
end

--- Words for a stream that ended before its end.
local function broken(peer, err, detail, limits)
    if err == "timeout" then
        return errors.new(504, "stream_idle", "Node " .. peer.node .. " sent nothing for " .. limits.stream_idle_timeout
            .. " s; the answer is incomplete.")
    end
    return errors.new(502, "stream_broken", "Node " .. peer.node .. " broke off; the answer is incomplete"
        .. (detail and " (" .. detail .. ")." or "."))
end

--- Pass a stream on, whole events only. Ends the request.
local function relay(ctx, peer, connection, head, splitter, text, limits)
    set_headers(ctx, peer, head)
    ngx.header["Cache-Control"] = "no-cache"
    ngx.header["X-Accel-Buffering"] = "no"
    local function watch()
        return proc.client_left() and "client_left" or nil
    end
    local failed, detail
    while text do
        if text ~= "" then
            ngx.print(text)
            flush(connection)
        end
        local idle = splitter.complete and AFTER_END or limits.stream_idle_timeout
        local piece, err
        piece, err, detail = connection:read_body(idle, watch)
        if piece then
            text, detail = splitter:feed(piece)
            failed = not text and "garbage" or nil
        else
            failed, text = err, nil
        end
    end
    if failed == "client_left" then
        connection:close()
        return client_left()
    end
    if not failed then
        local rest = splitter:finish()
        if rest ~= "" then
            ngx.print(rest)
        end
    end
    connection:finish()
    release(ctx)
    if splitter.complete then
        return
    end
    -- A clean end without the end marker is a broken one too.
    local err = broken(peer, failed or "closed", detail, limits)
    ctx.error = err.code
    ngx.print(errors.event(err, ctx.api))
    ngx.flush(true)
    ngx.exit(ngx.ERROR) -- no proper end: nobody takes this for a whole answer
end

--- Hand a whole answer on.
local function send_answer(ctx, answer)
    set_headers(ctx, answer.peer, answer.head)
    ngx.header["Content-Length"] = #answer.body
    if answer.head.status >= 500 then
        ngx.header["x-should-retry"] = "false"
        ctx.error = "peer_" .. answer.head.status
    end
    ngx.print(answer.body)
end

local function stream_kind(head)
    local content_type = (head.headers["content-type"] or ""):lower()
    if head.status ~= 200 then
        return nil
    elseif content_type:find("text/event-stream", 1, true) then
        return "sse"
    elseif content_type:find("application/x-ndjson", 1, true) then
        return "ndjson"
    end
    return nil
end

--- One try with one peer.
-- @return {kind = "streamed" | "answer" (head, body) | an error word, detail}
local function try(ctx, peer, limits)
    local function watch()
        if proc.client_left() then
            return "client_left"
        end
        return health.is_down(peer.id) and "ejected" or nil
    end
    local connection, head, detail = call(ctx, peer, limits, watch)
    if not connection then
        return { kind = head, detail = detail }
    end
    local kind = stream_kind(head)
    local body, err
    if kind then
        local splitter = events.new(kind, ctx.route.marker, limits.max_answer_bytes)
        body, err, detail = first_event(ctx, connection, splitter, limits, watch)
        if body then
            relay(ctx, peer, connection, head, splitter, body, limits)
            return { kind = "streamed" }
        end
    else
        body, err, detail = connection:read_all(limits.max_answer_bytes, limits.stream_idle_timeout, watch)
        if body then
            connection:finish()
            return { kind = "answer", peer = peer, head = head, body = body }
        end
    end
    connection:close()
    return { kind = err == "timeout" and "silent" or err, detail = detail }
end

-- The whole of an inference request

--- Why no peer took it, as an error.
local function no_peer(ctx, why)
    local waited = string.format("%.0f", ngx.now() - ctx.start)
    if why == "gone" then
        return unknown_model(peers.view(), ctx.asked)
    elseif why == "busy" then
        return errors.new(503, "queue_timeout", "All nodes that serve '" .. ctx.asked .. "' were busy for " .. waited .. " s.",
            { retry_after = RETRY_AFTER })
    end
    return errors.new(503, "no_node_available", "No node that serves '" .. ctx.asked .. "' was available for " .. waited .. " s.",
        { retry_after = RETRY_AFTER })
end

--- Does this outcome count against the request's two failures? Takes note of what it says about the peer.
-- @return true if the answer is for the client; else false
local function judge(ctx, peer, outcome, limits)
    local kind = outcome.kind
    if kind == "refused" then
        health.refused(peer)
    elseif kind == "unreachable" then
        health.failed(peer, "could not be reached: " .. (outcome.detail or "time-out"), limits)
        ctx.avoid[peer.id] = true
    elseif kind == "ejected" then
        ctx.avoid[peer.id] = true
    elseif kind == "answer" then
        local status = outcome.head.status
        if status == 503 or status == 429 then
            health.busy(peer, tonumber(outcome.head.headers["retry-after"]))
        elseif status >= 200 and status < 300 or status >= 400 and status < 500 or status == 501 then
            return true
        else
            ctx.failures = ctx.failures + 1
            ctx.failed_answer = outcome
            ctx.avoid[peer.id] = true
        end
    else -- closed, silent, garbage: it held the request and did not answer it
        ctx.failures = ctx.failures + 1
        ctx.failed_answer = nil
        ctx.avoid[peer.id] = true
    end
    return false
end

local function infer(ctx, view, route)
    local ok, err = parse(ctx, view, route)
    if not ok then
        return fail(ctx, err)
    end
    ctx.deadline = ngx.now() + view.limits.queue_timeout
    while true do
        local peer, why = place(ctx)
        if peer then
            ctx.attempts = ctx.attempts + 1
            ctx.peer = peer.name
            local limits = view.limits
            local outcome = try(ctx, peer, limits)
            release(ctx)
            if outcome.kind == "streamed" then
                return
            elseif outcome.kind == "client_left" then
                return client_left()
            elseif outcome.kind == "timeout" then
                return fail(ctx, errors.new(504, "first_byte_timeout", "Node " .. peer.node .. " sent nothing for "
                    .. limits.first_byte_timeout .. " s.", { should_retry = false }))
            elseif judge(ctx, peer, outcome, limits) then
                return send_answer(ctx, outcome)
            end
            ngx.log(ngx.WARN, "request ", ctx.id, ": peer ", peer.name, ": ", outcome.kind, " ",
                outcome.detail or outcome.head and outcome.head.status or "")
            if ctx.failures >= MAX_FAILURES then
                break
            end
        elseif why == "avoided" and not ctx.failed_answer and ngx.now() < ctx.deadline then
            -- The only peers left have failed this request already, without an answer: they may be back.
            pause(ctx, AGAIN)
            ctx.avoid = {}
        elseif why == "avoided" then
            break
        else
            return fail(ctx, no_peer(ctx, why))
        end
    end
    if ctx.failed_answer then
        return send_answer(ctx, ctx.failed_answer)
    end
    return fail(ctx, errors.new(502, "all_tries_failed", "The nodes that were given this request broke off without an answer.",
        { should_retry = false }))
end

-- Entry points

local function request_id()
    local given = ngx.var.http_x_request_id
    if given and #given <= 128 and given:find("^[%w._:-]+$") then
        return given
    end
    return ngx.var.request_id
end

local KINDS = { inference = infer }

function KINDS.models(_, view)
    return send_json(200, lists.models(view))
end

function KINDS.model(ctx, view, _, name)
    local body = lists.model(view, name)
    if not body then
        return fail(ctx, unknown_model(view, name))
    end
    return send_json(200, body)
end

function KINDS.tags(ctx, view, route)
    local body, err = lists.merged(view, route.path)
    if not body then
        return fail(ctx, err)
    end
    return send_json(200, body)
end
KINDS.ps = KINDS.tags

function KINDS.health(_, view)
    return send_json(lists.health(view))
end

function KINDS.version(ctx, view)
    local body, err = lists.version(view)
    if not body then
        return fail(ctx, err)
    end
    return send_json(200, body)
end

--- content_by_lua: serve one request.
function M.run()
    local path = ngx.var.uri
    local ctx = {
        start = ngx.now(), looked = ngx.now(), id = request_id(), api = surface.api_of(path), attempts = 0, failures = 0,
        avoid = {},
    }
    ngx.ctx.llm = ctx
    ngx.header["X-Request-Id"] = ctx.id
    ngx.on_abort(client_left)
    local view = peers.view()
    local method = ngx.req.get_method()
    local route, name = surface.find(method, path)
    if not route or route.engine and not (view and view.engines[route.engine]) then
        return fail(ctx, errors.new(404, "not_found", "There is nothing here for " .. method .. " " .. path .. "."))
    end
    if route.open then
        return KINDS[route.kind](ctx, view)
    end
    if not view then
        return fail(ctx, errors.new(503, "no_routing", "The balancer has not been given a routing table yet.",
            { retry_after = RETRY_AFTER }))
    end
    local ok, err = authenticate(ctx, view)
    if not ok then
        return fail(ctx, err)
    end
    ctx.route = route
    return KINDS[route.kind](ctx, view, route, name)
end

local NGINX_ERRORS = {
    ["400"] = { 400, "bad_request", "The request is not valid HTTP." },
    ["413"] = { 413, "request_too_large", "The body is too large." },
    ["414"] = { 414, "bad_request", "The request line is too long." },
    ["494"] = { 400, "headers_too_large", "The headers are too large." },
    ["497"] = { 400, "tls_required", "This port speaks HTTPS." },
}
local INTERNAL = { 500, "internal_error", "The balancer could not handle this request." }

--- Errors that nginx itself raises, in the shape of ours; the last part of the internal URI says which.
function M.nginx_error()
    local known = NGINX_ERRORS[ngx.var.uri:match("(%d+)$")] or INTERNAL
    errors.send(errors.new(known[1], known[2], known[3]), surface.api_of(ngx.var.llm_path or ""))
end

--- log_by_lua: whatever happened, the slot is free; then the access log's variables.
function M.log()
    local ctx = ngx.ctx.llm
    if not ctx then
        return
    end
    release(ctx)
    local var = ngx.var
    var.llm_id = ctx.id
    var.llm_key = ctx.key or ""
    var.llm_model = ctx.asked or ""
    var.llm_peer = ctx.peer or ""
    var.llm_attempts = ctx.attempts
    var.llm_ttfb = ctx.ttfb and string.format("%.3f", ctx.ttfb) or "null"
    var.llm_stream = ctx.stream and "true" or "false"
    var.llm_error = ctx.error or ""
end

return M
