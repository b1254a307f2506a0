-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The life of one request, from top to bottom:
-- authenticate → parse → route → claim a slot → exchange with the peer → stream back → release → record.
--
-- Nothing is sent to the client before a whole answer, or a stream's first whole event, is in hand: until then a request that
-- lost its node goes back to the queue, with its old ticket, and is placed again.

local access_log = require "llm_cluster.access_log"
local attempt = require "llm_cluster.attempt"
local body = require "llm_cluster.body"
local budget = require "llm_cluster.budget"
local claims = require "llm_cluster.claims"
local ending = require "llm_cluster.ending"
local errors = require "llm_cluster.errors"
local health = require "llm_cluster.health"
local keys = require "llm_cluster.keys"
local limits = require "llm_cluster.limits"
local lists = require "llm_cluster.lists"
local metrics = require "llm_cluster.metrics"
local outcomes = require "llm_cluster.outcomes"
local peers = require "llm_cluster.peers"
local proc = require "llm_cluster.proc"
local queue = require "llm_cluster.queue"
local request = require "llm_cluster.request"
local stream = require "llm_cluster.stream"
local surface = require "llm_cluster.surface"
local usage = require "llm_cluster.usage"

local M = {}

local CLIENT_LEFT = 499
local AGAIN = 0.2            -- seconds before the only peer of a model is tried again
local RETRY_AFTER = 2        -- seconds, told to clients when no node was there

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

--- The request needs its slot no longer.
-- @param may_go_on boolean: the engine may still be at work on it
local function release(ctx, may_go_on)
    local claim = ctx.claim
    if claim then
        ctx.claim = nil
        ending.finish(claim, may_go_on and not ctx.surface.slotless) -- what needs no slot keeps none at work
    end
end

-- Authenticate

--- @return true, or nil and an error
local function authenticate(ctx, view)
    local var = ngx.var
    local presented = keys.presented(var.http_authorization, ctx.api == "messages" and var.http_x_api_key or nil)
    local key = keys.find(view, presented)
    if key then
        ctx.key, ctx.key_entry = key.name, key
        return true
    elseif not view.table.require_key then
        return true
    end
    local message = presented and "This API key is not known here."
        or "An API key is needed: send the header 'Authorization: Bearer KEY'."
    return nil, errors.new(401, "invalid_api_key", message)
end

-- Parse

--- The body as one string. @return string, or nil and an error
local function read_body(view)
    if ngx.req.http_version() >= 2 and not ngx.var.http_content_length then
        return nil, errors.new(411, "length_required", "Over HTTP/2 a Content-Length is needed.")
    end
    local text = body.read()
    local most = view.limits.max_body_bytes
    if #text > most then
        return nil, errors.new(413, "request_too_large", "The body is larger than " .. most .. " bytes.",
            { should_retry = false })
    end
    return text
end

local function unknown_model(view, asked, key)
    local names = lists.names(view, key)
    local known = #names > 0 and table.concat(names, ", ") or "none"
    return errors.new(404, "model_not_found", "There is no model '" .. asked .. "'. Known models: " .. known .. ".",
        { param = "model" })
end

--- Read the request. @return true, or nil and an error
local function parse(ctx, view)
    local text, err = read_body(view)
    if not text then
        return nil, err
    end
    -- Only now: nginx itself answers a body that is broken or too large, and then log() can't say that the request is over.
    local ok
    ok, err = limits.enter(ctx.key_entry, ctx)
    if not ok then
        return nil, err
    end
    local parsed, words, param = request.parse(text, ctx.surface)
    if not parsed then
        return nil, errors.new(400, "invalid_request", words, { param = param })
    end
    ctx.parsed, ctx.stream = parsed, parsed.stream
    ctx.asked = parsed.model or view.default_model
    if not ctx.asked then
        return nil, errors.new(400, "model_required", "Say which 'model' is wanted.", { param = "model" })
    end
    return true
end

-- Route

--- Find the route, settle the model. @return true, or nil and an error
local function route(ctx, view)
    local asked, rule = ctx.asked, claims.find_rule(ctx, view)
    ctx.view = view
    local rewritten = rule and rule.model
    ctx.rule, ctx.model = rule, peers.resolve_model(view.by_model, rewritten or asked)
    if not ctx.model then
        return nil, unknown_model(view, asked, ctx.key_entry)
    end
    if ctx.key_entry then
        local ok, err = limits.allows(ctx.key_entry, asked)
        if not ok then
            return nil, err
        end
    end
    attempt.set_body(ctx, rewritten or not ctx.parsed.model and asked or nil)
    return true
end

--- Why no peer took it, as an error.
local function no_peer(ctx, why, retry_after)
    local waited = string.format("%.0f", ctx.waited)
    if why == "gone" then
        return unknown_model(peers.view(), ctx.asked, ctx.key_entry)
    elseif why == "none" and not ctx.rule then
        return errors.new(404, "model_not_found", "No node that serves '" .. ctx.model .. "' speaks this API.",
            { param = "model" })
    elseif why == "none" then
        return errors.new(503, "no_node_available", "No node that serves '" .. ctx.asked .. "' may take this request: the route '"
            .. ctx.rule.name .. "' leaves none.", { should_retry = false })
    elseif why == "full" then
        metrics.event("queue_full")
        return errors.new(503, "queue_full", "Too many requests wait already.", { retry_after = retry_after })
    elseif why == "shutdown" then
        return errors.new(503, "shutting_down", "The balancer is being restarted.", { retry_after = RETRY_AFTER })
    elseif why == "out" then
        return errors.new(503, "no_node_available", "No node that serves '" .. ctx.asked .. "' was available for " .. waited
            .. " s.", { retry_after = RETRY_AFTER })
    end
    metrics.event("queue_timeout")
    return errors.new(503, "queue_timeout", "All nodes that serve '" .. ctx.asked .. "' were busy for " .. waited .. " s.",
        { retry_after = queue.retry_after() })
end

-- Exchange

-- Outcomes after which the engine may still be at work on the request.
local MAY_GO_ON = { client_left = true, timeout = true, ejected = true, silent = true, shutdown = true }

--- Finish with an outcome that ends the request. @return true if it did
local function conclude(ctx, peer, outcome)
    local kind = outcome.kind
    if kind == "broken" then
        ctx.error = outcome.error.code
        stream.abort(outcome.error, ctx.api)
    elseif kind == "client_left" then
        client_left()
    elseif kind == "shutdown" then
        fail(ctx, no_peer(ctx, kind))
    elseif kind == "timeout" then
        fail(ctx, errors.new(504, "first_byte_timeout", "Node " .. peer.node .. " sent nothing for "
            .. peers.view().limits.first_byte_timeout .. " s.", { should_retry = false }))
    elseif outcomes.is_final(outcome) then
        if outcome.head.status < 300 then
            attempt.worked(ctx)
            ctx.usage = usage.find(outcome.body)
            health.measured(peer, ngx.now() - ctx.sent, ctx.usage and ctx.usage.completion, nil, ctx.model, ctx.unread)
        end
        attempt.send(ctx, outcome)
    else
        return kind == "streamed"
    end
    return true
end

--- Sleep, and leave if the client did.
local function pause(seconds)
    ngx.sleep(seconds)
    if proc.client_left() then
        client_left()
    end
end

-- The whole of an inference request

--- The request ends without a good answer.
local function give_up(ctx)
    if ctx.failed_answer then
        return attempt.send(ctx, ctx.failed_answer)
    end
    return fail(ctx, errors.new(502, "all_tries_failed", "The nodes that were given this request broke off without an answer.",
        { should_retry = false }))
end

--- No slot: wait a little for those that failed it, if it is no use otherwise; else say why. @return true if the request is over
local function without_peer(ctx, why, retry_after)
    if why == "avoided" and not ctx.failed_answer and ctx.patience > 0 then
        -- The only peers left have failed this request already, without an answer: they may be back.
        pause(AGAIN)
        ctx.patience = ctx.patience - AGAIN
        ctx.want.avoid = {}
        return false
    elseif why == "avoided" then
        give_up(ctx)
    elseif why == "client_left" then
        client_left()
    else
        fail(ctx, no_peer(ctx, why, retry_after))
    end
    return true
end

--- Place the request once. @return true if it is over, false if it is to be placed again
local function serve_once(ctx)
    local began = ngx.now()
    if ctx.was_busy and ctx.patience <= 0 then
        fail(ctx, no_peer(ctx, "busy"))
        return true
    end
    ctx.deadline = began + ctx.patience
    local peer, why, retry_after = claims.place(ctx)
    local waited = ngx.now() - began
    ctx.waited, ctx.patience = (ctx.waited or 0) + waited, ctx.patience - waited
    if not peer then
        return without_peer(ctx, why, retry_after)
    end
    local view = peers.view()
    ctx.attempts = ctx.attempts + 1
    ctx.peer = peer.name
    claims.remember_prefix(ctx, peer, view)
    local outcome = attempt.run(ctx, peer, view.limits)
    if outcome.kind == "died" or outcome.kind == "closed" then
        health.broke(peer) -- before somebody else gets the slot
    end
    release(ctx, MAY_GO_ON[outcome.kind] and not ctx.relaying)
    if conclude(ctx, peer, outcome) then
        return true
    end
    ngx.log(ngx.WARN, "request ", ctx.id, ": peer ", peer.name, ": ", outcome.kind, " ",
        outcome.detail or outcome.head and outcome.head.status or "")
    if outcomes.is_busy(outcome) then -- it only went on waiting
        ctx.was_busy, ctx.patience = true, ctx.patience - (ngx.now() - began - waited)
    end
    if not outcomes.judge(ctx, peer, outcome, view) then
        give_up(ctx)
        return true
    end
    metrics.event("retry", outcome.kind == "answer" and tostring(outcome.head.status) or outcome.kind)
    return false
end

local function infer(ctx, view)
    local ok, err = parse(ctx, view)
    if ok then
        ok, err = route(ctx, view)
    end
    if not ok then
        return fail(ctx, err)
    end
    ctx.want = { model = ctx.model, since = ctx.start, slotless = ctx.surface.slotless, avoid = {} }
    ctx.want.has_fallback = ctx.rule and ctx.rule.fallback ~= nil
    ctx.patience = view.limits.queue_timeout -- only waiting uses it up, not the time at a peer that then failed
    claims.look_up_prefix(ctx, view)
    budget.earn(view.limits.retry_budget)
    if not serve_once(ctx) then -- the first time by itself: see exchange.lua
        repeat until serve_once(ctx)
    end
end

-- Entry points

local id_begins, ids_given = nil, 0 -- of this worker

--- A name for the request: no two have the same, and it is no secret. nginx's own takes random numbers for each request, which
-- cost more than the rest of this file.
local function request_id()
    local given = ngx.var.http_x_request_id
    if given and #given <= 128 and given:find("^[%w._:-]+$") then
        return given
    end
    id_begins = id_begins or ngx.var.request_id:sub(1, 20)
    ids_given = ids_given + 1
    return string.format("%s%012x", id_begins, ids_given)
end

local KINDS = { inference = infer }

function KINDS.models(ctx, view)
    return send_json(200, lists.models(view, ctx.key_entry))
end

function KINDS.model(ctx, view, _, name)
    local text = lists.model(view, name, ctx.key_entry)
    if not text then
        return fail(ctx, unknown_model(view, name, ctx.key_entry))
    end
    return send_json(200, text)
end

function KINDS.tags(ctx, view, entry)
    local text, err = lists.merged(view, entry.path, ctx.key_entry)
    if not text then
        return fail(ctx, err)
    end
    return send_json(200, text)
end
KINDS.ps = KINDS.tags

function KINDS.health(_, view)
    return send_json(lists.health(view))
end

function KINDS.version(ctx, view)
    local text, err = lists.version(view)
    if not text then
        return fail(ctx, err)
    end
    return send_json(200, text)
end

local INTERNAL = { 500, "internal_error", "The balancer could not handle this request." }

--- content_by_lua: serve one request.
function M.run()
    local path = ngx.var.uri
    local ctx = {
        start = ngx.now(), id = request_id(), api = surface.api_of(path), attempts = 0, failures = 0, ticket = queue.ticket(),
    }
    ngx.ctx.llm = ctx
    ngx.header["X-Request-Id"] = ctx.id
    local view = peers.view()
    local method = ngx.req.get_method()
    if method == "HEAD" then -- its body would else be taken for the next request by some versions of the Lua module
        ngx.req.discard_body()
    end
    local entry, name = surface.find(method, path)
    if not entry or entry.engine and not (view and view.engines[entry.engine]) then
        return fail(ctx, errors.new(404, "not_found", "There is nothing here for " .. method .. " " .. path .. "."))
    end
    if entry.open then
        return KINDS[entry.kind](ctx, view)
    end
    if not view then
        return fail(ctx, errors.new(503, "no_routing", "The balancer has not been given a routing table yet.",
            { retry_after = RETRY_AFTER }))
    end
    local ok, err = authenticate(ctx, view)
    if not ok then
        return fail(ctx, err)
    end
    ctx.surface = entry
    -- Our own error, for the page that nginx would make of a crash is another request to log(): the slot would stay in use.
    local fine, why = xpcall(KINDS[entry.kind], debug.traceback, ctx, view, entry, name)
    if not fine then
        ngx.log(ngx.ALERT, why)
        return ngx.headers_sent and ngx.exit(ngx.ERROR) or fail(ctx, errors.new(INTERNAL[1], INTERNAL[2], INTERNAL[3]))
    end
end

local NGINX_ERRORS = {
    ["400"] = { 400, "bad_request", "The request is not valid HTTP." },
    ["403"] = { 403, "forbidden", "This address is not among those that may see this page." },
    ["405"] = { 405, "method_not_allowed", "This method is not allowed." },
    ["413"] = { 413, "request_too_large", "The body is too large." },
    ["414"] = { 414, "bad_request", "The request line is too long." },
    ["501"] = { 400, "bad_request", "This transfer encoding is not known." },
    ["505"] = { 400, "bad_request", "This version of HTTP is not known." },
    ["494"] = { 400, "headers_too_large", "The headers are too large." },
    ["497"] = { 400, "tls_required", "This port speaks HTTPS." },
}

--- Errors that nginx itself raises, in the shape of ours; the last part of the internal URI says which.
function M.nginx_error()
    local known = NGINX_ERRORS[ngx.var.uri:match("(%d+)$")] or INTERNAL
    errors.send(errors.new(known[1], known[2], known[3]), surface.api_of(ngx.var.llm_path or ""))
end

--- log_by_lua: whatever happened, the slot is free; then the request is counted and logged.
function M.log()
    local ctx = ngx.ctx.llm
    if not ctx then -- nginx itself refused it
        return metrics.observe { status = ngx.status }
    end
    if ctx.waiter then
        queue.leave(ctx.waiter)
    end
    release(ctx, not ctx.relaying)
    if ctx.blames then
        outcomes.acquit(ctx)
    end
    limits.leave(ctx)
    metrics.observe(ctx)
    access_log.write(ctx)
end

return M
