-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- One try of a request with one peer: send it, wait for the answer, hand a stream on.

local events = require "llm_cluster.events"
local exchange = require "llm_cluster.exchange"
local health = require "llm_cluster.health"
local lifetime = require "llm_cluster.lifetime"
local request = require "llm_cluster.request"
local stream = require "llm_cluster.stream"

local M = { peer_header = true }

local FORWARDED = { -- request headers that a peer gets, by nginx variable
    { "Accept", "http_accept" }, { "User-Agent", "http_user_agent" }, { "OpenAI-Beta", "http_openai_beta" },
    { "Anthropic-Version", "http_anthropic_version" }, { "Anthropic-Beta", "http_anthropic_beta" },
}
local RETURNED = { -- response headers that a client gets
    "content-type", "content-encoding", "retry-after", "openai-processing-ms", "openai-version",
}

--- Settle what goes to the peer: the body, with this model in it if it is not the one that the client wrote.
function M.set_body(ctx, model)
    local pieces = request.pieces(ctx.parsed, model)
    local length = #pieces[1]
    for i = 2, #pieces do
        length = length + #pieces[i]
    end
    ctx.pieces, ctx.length, ctx.forwarded = pieces, length, nil
end

--- The request headers that are the same for every peer. They are read once.
local function forwarded(ctx)
    local text = ctx.forwarded
    if not text then
        local var = ngx.var
        local lines = { "Content-Type: application/json\r\nContent-Length: ", ctx.length, "\r\nX-Request-Id: ", ctx.id }
        for i = 1, #FORWARDED do
            local header = FORWARDED[i]
            local value = var[header[2]]
            if value and value ~= "" then
                lines[#lines + 1] = "\r\n" .. header[1] .. ": " .. value
            end
        end
        lines[#lines + 1] = "\r\n\r\n"
        text = table.concat(lines)
        ctx.forwarded = text
    end
    return text
end

--- Why the request should not wait for its peer any longer, or nil. A stream that has begun is left to an ejected peer: it may
-- yet finish it, and nobody else can.
local function watch(ctx)
    local interrupted = lifetime.interruption()
    if interrupted or ctx.relaying or not health.is_down(ctx.held_by) then
        return interrupted
    end
    -- Another request may see first that it died: this one was in its hands all the same, and may be why.
    return health.is_dead(ctx.held_by) and "died" or "ejected"
end

--- Connect, send, read the head. A pooled connection that fails before any byte is no failure: once more on a fresh one.
--
-- It may be one to a peer that died before this request was sent, which then counts as failed there though it wasn't in its
-- hands. Once does no harm. A request that failed already gets a fresh connection, so that the second time is certain.
-- @return connection and head; or nil, an error word and details
local function call(ctx, peer, limits)
    local head_text = "POST " .. ctx.surface.path .. " HTTP/1.1\r\nHost: " .. peer.host .. ":" .. peer.port .. "\r\n"
        .. forwarded(ctx)
    local fresh, again = ctx.failures > 0, false
    while true do
        local connection, err, detail = exchange.connect(peer, limits.connect_timeout, fresh, watch, ctx)
        if not connection then
            if again and err == "refused" then
                health.refused(peer)
            end
            -- No connection any more: it was not one grown old, the peer died with this request in its hands.
            return nil, again and "died" or err, detail
        end
        ctx.sent = ngx.now()
        ctx.first_byte_by = ctx.sent + limits.first_byte_timeout
        local ok, head
        ok, err = connection:send(head_text, ctx.pieces)
        if ok then
            head, err, detail = connection:read_head(ctx.first_byte_by)
            if head then
                return connection, head
            end
        end
        connection:close()
        if err ~= "closed" or not connection.reused or connection.received then
            return nil, err, detail
        end
        fresh, again = true, true
    end
end

local function set_headers(ctx, peer, head)
    local header = ngx.header
    ngx.status = head.status
    for i = 1, #RETURNED do
        local name = RETURNED[i]
        local value = head.headers[name]
        if value then
            header[name] = value
        end
    end
    if M.peer_header then
        header["X-LLM-Peer"] = peer.name
    end
    ctx.ttfb = ngx.now() - ctx.start
end

--- It works here: so those that failed it before are to blame.
function M.worked(ctx)
    for _, blame in ipairs(ctx.blames or {}) do
        health.blame(blame.peer, blame.why, ctx.model)
    end
    ctx.blames = nil
end

--- Hand the stream on, from its first event, to its end.
local function relay(ctx, peer, connection, head, splitter, text, limits)
    set_headers(ctx, peer, head)
    local header = ngx.header
    header["Cache-Control"] = "no-cache"
    header["X-Accel-Buffering"] = "no"
    local first = ngx.now()
    ctx.relaying = true
    M.worked(ctx)
    local ending, pieces = stream.relay(ctx, peer, connection, splitter, text, limits)
    if ending == "client_left" then
        connection:close()
        return { kind = ending }
    end
    connection:finish()
    if ending then
        return { kind = "broken", error = ending }
    end
    local tokens = ctx.usage and ctx.usage.completion or pieces
    health.measured(peer, first - ctx.sent, tokens, ngx.now() - first, ctx.model, ctx.unread)
    return { kind = "streamed" }
end

--- Try.
-- @param ctx the request: surface, pieces, length, id, start …; sets ttfb once the client is being answered
-- @return {kind = …}: "streamed"; "broken" (error: to be sent as an event); "answer" (peer, head, body: whole, nothing sent
--   yet); "client_left", "shutdown", "ejected" (the peer was, meanwhile); "died" (with the request in its hands); "timeout" (no
--   first byte); "refused", "unreachable", "local", "closed", "silent", "garbage" (detail: words)
function M.run(ctx, peer, limits)
    ctx.held_by = peer.id
    local connection, head, detail = call(ctx, peer, limits)
    if not connection then
        return { kind = head, detail = detail }
    end
    local kind = stream.kind(head)
    local body, err
    if kind then
        local splitter = events.new(kind, ctx.surface.marker, limits.max_answer_bytes)
        body, err, detail = stream.first_event(connection, splitter, ctx.first_byte_by)
        if body then
            return relay(ctx, peer, connection, head, splitter, body, limits)
        end
    else
        body, err, detail = connection:read_all(limits.max_answer_bytes, limits.stream_idle_timeout)
        if body then
            connection:finish()
            return { kind = "answer", peer = peer, head = head, body = body }
        end
    end
    connection:close()
    return { kind = err == "timeout" and "silent" or err, detail = detail }
end

--- Send a whole answer to the client.
function M.send(ctx, answer)
    set_headers(ctx, answer.peer, answer.head)
    ngx.header["Content-Length"] = #answer.body
    if answer.head.status >= 500 then
        ngx.header["x-should-retry"] = "false"
        ctx.error = "peer_" .. answer.head.status
    end
    ngx.print(answer.body)
end

return M
