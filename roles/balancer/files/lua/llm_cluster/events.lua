-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- A stream as whole events: SSE events or NDJSON lines, and whether the API's own end marker was among them. Pure.

local request = require "llm_cluster.request"

local find, match, sub = string.find, string.match, string.sub

local M = {}
local Splitter = {}
Splitter.__index = Splitter

--- Does the pattern stand at the start of a line?
local function at_line(text, pattern)
    return find(text, "^" .. pattern) or find(text, "\n" .. pattern)
end

--- How each API ends a stream. Content cannot forge it: line breaks and quotes inside JSON strings are escaped.
local MARKERS = {
    done = function(text)
        return find(text, "[DONE]", 1, true) and at_line(text, "data: ?%[DONE%]")
    end,
    response = function(text)
        if not find(text, "response.", 1, true) then
            return false
        end
        for _, name in ipairs { "completed", "failed", "incomplete" } do
            if at_line(text, "event: ?response%." .. name) or at_line(text, 'data: ?{"type": ?"response%.' .. name .. '"') then
                return true
            end
        end
        return false
    end,
    message = function(text)
        return find(text, "message_stop", 1, true)
            and (at_line(text, "event: ?message_stop") or at_line(text, 'data: ?{"type": ?"message_stop"'))
    end,
}

--- An engine that ends its stream with an error has ended it: the client is told.
local function sse_error(text)
    return find(text, "error", 1, true) and (at_line(text, 'data: ?{"error"') or at_line(text, "event: ?error")
        or at_line(text, "error: ?{"))
end

local function ndjson_end(line)
    if not find(line, '"done"%s*:%s*true') and not find(line, '"error"', 1, true) then
        return false
    end
    local fields = request.scan(line)
    if not fields then
        return false
    end
    local done = fields.done
    return fields.error ~= nil or (done ~= nil and sub(line, done.first, done.last) == "true")
end

--- @param kind "sse" or "ndjson"
-- @param marker "done", "response" or "message" (SSE only)
-- @param max_event bytes that one event may have
function M.new(kind, marker, max_event)
    return setmetatable({
        ndjson = kind == "ndjson", marker = MARKERS[marker] or MARKERS.done, max_event = max_event,
        pending = "", from = 1, complete = false, real = false,
    }, Splitter)
end

--- Look at text that goes to the client: sets complete and real (an event with content, not only comments).
function Splitter:inspect(text)
    if self.ndjson then
        self.real = self.real or find(text, "%S") ~= nil
        if find(text, '"done"', 1, true) or find(text, '"error"', 1, true) then
            for line in text:gmatch("[^\n]+") do
                self.complete = self.complete or ndjson_end(line)
            end
        end
        return
    end
    self.real = self.real or at_line(text, "data:") ~= nil or at_line(text, "event:") ~= nil
        or at_line(text, "error:") ~= nil
    self.complete = self.complete or (self.marker(text) or sse_error(text)) and true or false
end

--- Add bytes.
-- @return the whole events they completed ("" if none), or nil and an error if one event is too large
function Splitter:feed(data)
    local buffer = self.pending == "" and data or self.pending .. data
    local last
    if self.ndjson then
        last = find(data, "\n", 1, true) and match(buffer, "^.*()\n") -- anchored, or it is tried from each byte on
    else
        local from = self.from
        while true do
            local _, e = find(buffer, "\n\r?\n", from)
            if not e then
                break
            end
            last = e
            from = e -- "\n\n\n" holds two blank lines
        end
    end
    if not last then
        if #buffer > self.max_event then
            return nil, "an event is larger than " .. self.max_event .. " bytes"
        end
        self.pending = buffer
        self.from = math.max(1, #buffer - 2)
        return ""
    end
    local whole = last == #buffer and buffer or sub(buffer, 1, last)
    self.pending = sub(buffer, last + 1)
    self.from = 1
    self:inspect(whole)
    return whole
end

--- The peer ended cleanly: what is left counts as an event if it is the end marker without its last line break.
-- @return bytes to forward
function Splitter:finish()
    local rest = self.pending
    self.pending = ""
    if rest == "" then
        return ""
    end
    self:inspect(rest)
    return self.complete and rest or ""
end

return M
