-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- A peer's stream on its way to the client: whole events only, and an end that nobody can mistake.

local errors = require "llm_cluster.errors"
local lifetime = require "llm_cluster.lifetime"
local usage = require "llm_cluster.usage"

local find = string.find

local M = {}

local MAX_IDLE = 65536       -- bytes of comments and blank lines before the first event
local AFTER_END = 1          -- seconds that a peer may take to end an answer whose end marker was seen

--- Is the answer a stream? @return "sse", "ndjson" or nil
function M.kind(head)
    local content_type = head.status == 200 and head.headers["content-type"]
    if not content_type then
        return nil
    end
    content_type = content_type:lower()
    if find(content_type, "text/event-stream", 1, true) then
        return "sse"
    elseif find(content_type, "application/x-ndjson", 1, true) then
        return "ndjson"
    end
    return nil
end

--- Bytes until the first whole event: until then the request can still be placed elsewhere.
-- @param deadline ngx.now() value
-- @return text; or nil, an error word and details
function M.first_event(connection, splitter, deadline)
    local parts, size = {}, 0
    while not splitter.real do
        local piece, err, detail = connection:read_body(math.max(0, deadline - ngx.now()))
        if not piece then
            if not err then
                parts[#parts + 1] = splitter:finish()
                if splitter.real then
                    return table.concat(parts)
                end
            end
            return nil, err or "closed", detail or "its stream was empty"
        end
        local whole
        whole, err = splitter:feed(piece)
        if not whole then
            return nil, "garbage", err
        end
        parts[#parts + 1] = whole
        size = size + #whole
        if size > MAX_IDLE and not splitter.real then
            return nil, "garbage", "it sent no event in " .. MAX_IDLE .. " bytes"
        end
    end
    return table.concat(parts)
end

--- Take note of the tokens that the stream reports.
local function note_usage(ctx, text)
    if find(text, '"usage"', 1, true) or find(text, '"timings"', 1, true) or find(text, '"eval_count"', 1, true) then
        ctx.usage = usage.find(text, ctx.usage)
    end
end

--- Words for a stream that ended before its end.
local function broken(peer, err, detail, limits)
    if err == "timeout" then
        return errors.new(504, "stream_idle", "Node " .. peer.node .. " sent nothing for " .. limits.stream_idle_timeout
            .. " s; the answer is incomplete.")
    elseif err == "shutdown" then
        return errors.new(503, "shutting_down", "The balancer is being restarted; the answer is incomplete.")
    end
    return errors.new(502, "stream_broken", "Node " .. peer.node .. " broke off; the answer is incomplete"
        .. (detail and " (" .. detail .. ")." or "."))
end

--- Pass the stream on until it ends.
-- @param text what first_event() gave
-- @return nil if it ended well, "client_left", or an error whose event is still to be sent; and the pieces passed on
function M.relay(ctx, peer, connection, splitter, text, limits)
    local failed, detail
    local pieces = 0
    while text do
        if text ~= "" then
            pieces = pieces + 1
            note_usage(ctx, text)
            ngx.print(text)
            if not ngx.flush(true) then
                return "client_left", pieces
            end
        end
        local piece, err
        if lifetime.is_over() and not splitter.complete then -- a stream that never pauses is not watched otherwise
            err = "shutdown"
        else
            piece, err, detail = connection:read_body(splitter.complete and AFTER_END or limits.stream_idle_timeout)
        end
        if piece then
            text, detail = splitter:feed(piece)
            failed = not text and "garbage" or nil
        else
            failed, text = err, nil
        end
    end
    if failed == "client_left" then
        return failed, pieces
    end
    if not failed then
        local rest = splitter:finish()
        if rest ~= "" then
            note_usage(ctx, rest)
            ngx.print(rest)
        end
    end
    if splitter.complete then
        return nil, pieces
    end
    -- A clean end without the end marker is a broken one too.
    return broken(peer, failed or "closed", detail, limits), pieces
end

--- End a stream that broke: an error event and no proper end, so that nobody takes it for a whole answer.
function M.abort(err, api)
    ngx.print(errors.event(err, api))
    ngx.flush(true)
    ngx.exit(ngx.ERROR)
end

return M
