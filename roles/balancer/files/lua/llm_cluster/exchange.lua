-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- HTTP/1.1 with one peer over a cosocket.
--
-- Every wait is cut into short ones, after each of which watch() may end it: that is how a client that left, or a peer that was
-- found dead meanwhile, is noticed. What a peer may send is bounded: head, one chunk line, trailers; bodies by the caller.
--
-- Errors are words with a meaning, so that proxy.lua can decide:
--   refused, unreachable   no connection was made (unreachable: time-out or no route)
--   local                  nor could it be, for a reason of this host: no more files, ports or memory
--   closed                 the connection ended
--   timeout                silence instead of an answer; silent: nor does it take the request
--   garbage                not HTTP as it should be
--   anything else          what watch() said

local byte, find, match, sub, lower = string.byte, string.find, string.match, string.sub, string.lower

local M = {}
local Connection = {}
Connection.__index = Connection

local TICK = 0.25            -- seconds between two looks at watch()
local MAX_HEAD = 65536       -- bytes
local MAX_HEADERS = 100
local MAX_INFORMATIONAL = 4
local MAX_LINE = 1024        -- of a chunk
local MAX_LINES_KEPT = 256   -- of heads, whose meaning is remembered
local MAX_LINE_KEPT = 128    -- bytes
local POOL_IDLE = 4          -- seconds; llama.cpp closes after 5
local POOL_SIZE = 64         -- per peer and worker
local READ = 65536
local SENT_AT_ONCE = 32768   -- bytes that an idle connection takes without waiting for the peer

local pooling = { pool_size = POOL_SIZE } -- read by connect() before it yields

-- What nginx says when a connection failed on its way or at the other end. Anything else went wrong here.
local ON_THE_WAY = { "timeout", "timed out", "no route", "unreachable", "is down", "reset" }

local function no_connection(err)
    if find(err, "refused", 1, true) then
        return "refused"
    end
    for i = 1, #ON_THE_WAY do
        if find(err, ON_THE_WAY[i], 1, true) then
            return "unreachable"
        end
    end
    return "local"
end

--- Connect to a peer, by a pooled connection if there is one.
-- @param peer {id, host, port}
-- @param timeout seconds
-- @param fresh boolean: a new connection, not kept afterwards
-- @param watch function of `watched`, asked while waiting: returns a reason to stop, or nil; nil: nothing stops it
-- @return connection, with reused set; or nil, "refused", "unreachable" or "local", and nginx's words
function M.connect(peer, timeout, fresh, watch, watched)
    local sock = ngx.socket.tcp()
    sock:settimeouts(timeout * 1000, 30000, TICK * 1000)
    pooling.pool = fresh and "fresh:" .. peer.id or peer.id
    local ok, err = sock:connect(peer.host, peer.port, pooling)
    if not ok then
        sock:close()
        return nil, no_connection(err), err
    end
    return setmetatable({
        sock = sock, buffer = "", pos = 1, fresh = fresh, reused = (sock:getreusedtimes() or 0) > 0, received = false,
        watch = watch, watched = watched,
    }, Connection)
end

--- Send a request.
-- @param head string: request line and headers with the blank line
-- @param pieces list of strings, the body
-- @return true, or nil and "closed", "silent" (the peer takes no bytes) or what the watch said
function Connection:send(head, pieces)
    local parts = { head }
    local total = #head
    for i, piece in ipairs(pieces) do
        parts[i + 1] = piece
        total = total + #piece
    end
    if total <= SENT_AT_ONCE then
        local sent, err = self.sock:send(parts)
        if not sent then
            return nil, err == "timeout" and "silent" or "closed"
        end
        return true
    end
    -- A large body can fill the peer's buffers and block: a thread sends, this one keeps watching.
    local semaphore = require("ngx.semaphore").new(0)
    local sent, err
    local thread = ngx.thread.spawn(function()
        sent, err = self.sock:send(parts)
        semaphore:post(1)
    end)
    while not semaphore:wait(TICK) do
        local reason = self.watch and self.watch(self.watched)
        if reason then
            ngx.thread.kill(thread)
            return nil, reason
        end
    end
    if not sent then
        return nil, err == "timeout" and "silent" or "closed"
    end
    return true
end

-- What mostly happens once stands before its loop, not in it: LuaJIT compiles straight code from its beginning, but gives up on a
-- function that comes to a loop before the loop is hot.

--- Wait for bytes as long as nothing speaks against it. @return string, or nil and an error word
local function wait_for_bytes(self, err, deadline)
    while true do
        if err ~= "timeout" then
            return nil, "closed"
        end
        local reason = self.watch and self.watch(self.watched)
        if reason then
            return nil, reason
        end
        if ngx.now() >= deadline then
            return nil, "timeout"
        end
        local data
        data, err = self.sock:receiveany(READ)
        if data then
            return data
        end
    end
end

--- More bytes into the buffer.
-- @param deadline ngx.now() value
function Connection:fill(deadline)
    local data, err = self.sock:receiveany(READ)
    if not data then
        data, err = wait_for_bytes(self, err, deadline)
        if not data then
            return nil, err
        end
    end
    self.received = true
    self.buffer = self.pos > #self.buffer and data or sub(self.buffer, self.pos) .. data
    self.pos = 1
    return true
end

--- A header block that is whole in the buffer, as text, or nil.
local function take_block(self, from)
    local s, e = find(self.buffer, "\r\n\r\n", from, true)
    if not s then
        return nil
    end
    local text = sub(self.buffer, self.pos, s + 1)
    self.pos = e + 1
    return text
end

--- One header block up to its blank line, as text.
function Connection:read_block(deadline)
    local text = self.pos <= #self.buffer and take_block(self, self.pos)
    if not text then
        local ok, err = self:fill(deadline)
        if not ok then
            return nil, err
        end
        text = take_block(self, self.pos)
    end
    if text then
        return text
    end
    return self:read_rest_of_block(deadline)
end

--- The same, when it did not come at once.
function Connection:read_rest_of_block(deadline)
    while true do
        local size = #self.buffer - self.pos + 1
        if size > MAX_HEAD then
            return nil, "garbage", "its header is larger than " .. MAX_HEAD .. " bytes"
        end
        if size >= 5 and sub(self.buffer, self.pos, self.pos + 4) ~= "HTTP/" then
            return nil, "garbage", "its answer is not HTTP"
        end
        local ok, err = self:fill(deadline)
        if not ok then
            return nil, err
        end
        local text = take_block(self, math.max(self.pos, self.pos + size - 3))
        if text then
            return text
        end
    end
end

-- Names as engines write them, so that the common ones need neither checking nor folding.
local NAMES = {}
for _, name in ipairs {
    "Content-Type", "Content-Length", "Connection", "Transfer-Encoding", "Server", "Date", "Keep-Alive", "Cache-Control",
    "Access-Control-Allow-Origin", "Retry-After",
} do
    NAMES[name] = lower(name)
    NAMES[lower(name)] = lower(name)
end

--- A header's name in lower case, or nil if it is none.
local function fold_name(name)
    local known = NAMES[name]
    if known then
        return known
    elseif name == "" or find(name, "[^%w!#$%%&'*+.^_`|~-]") then
        return nil
    end
    return lower(name)
end

--- Space and tabs around it removed.
local function trimmed(value)
    if byte(value, 1) == 32 and byte(value, 2) ~= 32 then
        value = sub(value, 2)
    end
    local first, last = byte(value, 1), byte(value, -1)
    if first == 32 or first == 9 or last == 32 or last == 9 then
        return match(value, "^[ \t]*(.*[^ \t])") or ""
    end
    return value
end

-- Engines send the same lines again and again, and patterns are no work for LuaJIT: each one leaves compiled code. So what a line
-- says is kept, under the line itself.
local known_lines, lines_kept = {}, 0

local function keep(line, said)
    if #line <= MAX_LINE_KEPT then
        if lines_kept == MAX_LINES_KEPT then
            known_lines, lines_kept = {}, 0
        end
        known_lines[line], lines_kept = said, lines_kept + 1
    end
    return said
end

--- @return {status, minor}, or nil
local function status_of(line)
    local minor, status = match(line, "^HTTP/1%.([01]) (%d%d%d)[^\r\n]*$")
    return minor and keep(line, { status = tonumber(status), minor = tonumber(minor) })
end

--- @return {name (lower-case), value}, or nil
local function header_of(line)
    local colon = find(line, ":", 1, true)
    local name = colon and fold_name(sub(line, 1, colon - 1))
    local value = name and sub(line, colon + 1)
    if not name or find(value, "[%z\1-\8\10-\31\127]") then
        return nil
    end
    return keep(line, { name = name, value = trimmed(value) })
end

local function parse_head(text)
    local stop = find(text, "\r\n", 1, true)
    local line = sub(text, 1, stop - 1)
    local first = known_lines[line] or status_of(line)
    if not first or not first.status then
        return nil, "its status line is not HTTP/1.1"
    end
    local headers, count, from = {}, 0, stop + 2
    while from <= #text do
        stop = find(text, "\r\n", from, true)
        line = sub(text, from, stop - 1)
        local header = known_lines[line] or header_of(line)
        local name = header and header.name
        if not name then
            return nil, "it sent a header line that is none"
        end
        count = count + 1
        if count > MAX_HEADERS then
            return nil, "it sent more than " .. MAX_HEADERS .. " headers"
        end
        local value, before = header.value, headers[name]
        if before and name == "content-length" then
            if before ~= value then
                return nil, "it sent two different lengths"
            end
        else
            headers[name] = before and before .. ", " .. value or value
        end
        from = stop + 2
    end
    return { status = first.status, minor = first.minor, headers = headers }
end

--- Read status and headers.
-- @return {status, headers (lower-case names)}; or nil, an error word and details
function Connection:read_head(deadline)
    return self:read_final_head(deadline, MAX_INFORMATIONAL)
end

--- The same, stepping over informational answers (1xx).
-- @param most that are accepted
function Connection:read_final_head(deadline, most)
    local text, err, detail = self:read_block(deadline)
    if not text then
        return nil, err, detail
    end
    local head
    head, detail = parse_head(text)
    if not head then
        return nil, "garbage", detail
    end
    if head.status >= 200 then
        detail = self:frame(head)
        if detail then
            return nil, "garbage", detail
        end
        return head
    elseif head.status == 101 or most == 0 then
        return nil, "garbage", "it sent informational answers only"
    end
    return self:read_final_head(deadline, most - 1)
end

--- Decide how long the body is. Returns what is wrong, or nil.
function Connection:frame(head)
    local headers = head.headers
    local connection = lower(headers.connection or "")
    self.keep = head.minor == 1 and not find(connection, "close", 1, true)
    local encoding = headers["transfer-encoding"]
    if head.status == 204 or head.status == 304 then
        self.mode, self.left = "length", 0
    elseif encoding then
        if lower(encoding) ~= "chunked" then
            return "it used the transfer encoding '" .. sub(encoding, 1, 40) .. "'"
        end
        if headers["content-length"] then
            self.keep = false
        end
        self.mode, self.left = "chunked", 0
    elseif headers["content-length"] then
        local length = match(headers["content-length"], "^%d+$")
        if not length or #length > 15 then
            return "it sent a length that is no number"
        end
        self.mode, self.left = "length", tonumber(length)
    else
        self.mode, self.keep = "close", false
    end
    self.done = self.mode == "length" and self.left == 0
    return nil
end

--- Take up to n buffered bytes.
function Connection:take(n)
    local first = self.pos
    local last = math.min(#self.buffer, first + n - 1)
    self.pos = last + 1
    return sub(self.buffer, first, last)
end

--- Decode what the buffer holds of a chunked body.
-- @return list of strings; or nil and what is wrong
function Connection:unchunk()
    local parts = {}
    while true do
        local available = #self.buffer - self.pos + 1
        if self.left > 0 then
            if available <= 0 then
                return parts
            end
            local piece = self:take(self.left)
            parts[#parts + 1] = piece
            self.left = self.left - #piece
            self.need_break = self.left == 0
        elseif self.need_break then
            if available < 2 then
                return parts
            end
            if self:take(2) ~= "\r\n" then
                return nil, "a chunk does not end where it said"
            end
            self.need_break = false
        else
            local s, e = find(self.buffer, "\r\n", self.pos, true)
            if not s then
                if available > MAX_LINE then
                    return nil, "a chunk line is too long"
                end
                return parts
            end
            local line = sub(self.buffer, self.pos, s - 1)
            if #line > MAX_LINE then
                return nil, "a chunk line is too long"
            end
            self.pos = e + 1
            if self.trailers then
                self.trailers = self.trailers + 1
                if line == "" then
                    self.done = true
                    return parts
                elseif self.trailers > MAX_HEADERS then
                    return nil, "too many trailers"
                end
            else
                local size = match(line, "^(%x+)[ \t]*$") or match(line, "^(%x+)[ \t]*;")
                if not size or #size > 8 then
                    return nil, "a chunk size is no number"
                end
                self.left = tonumber(size, 16)
                if self.left == 0 then
                    self.trailers = 0
                end
            end
        end
    end
end

--- The next bytes of the body, as they come.
-- @param idle seconds of silence allowed
-- @return string; or nil and nil at its end; or nil, an error word and details
function Connection:read_body(idle)
    if self.mode == "length" and not self.done and self.pos <= #self.buffer then
        return self:take_plain()
    end
    return self:read_more_body(idle)
end

--- Buffered bytes of a body that is not chunked.
function Connection:take_plain()
    local piece = self:take(self.left or #self.buffer)
    if self.mode == "length" then
        self.left = self.left - #piece
        self.done = self.left == 0
    end
    return piece
end

--- The same as read_body(), when the buffer alone does not do.
function Connection:read_more_body(idle)
    local deadline
    while not self.done do
        if self.mode == "chunked" then
            local parts, detail = self:unchunk()
            if not parts then
                return nil, "garbage", detail
            end
            if #parts > 0 then
                return table.concat(parts)
            end
            if self.done then
                break
            end
        elseif self.pos <= #self.buffer then
            return self:take_plain()
        end
        deadline = deadline or ngx.now() + idle
        local ok, err = self:fill(deadline)
        if not ok then
            if err == "closed" and self.mode == "close" then
                self.done = true
                break
            end
            return nil, err
        end
    end
    return nil
end

--- Read the body whole.
-- @param most bytes
-- @return string; or nil, an error word and details
function Connection:read_all(most, idle)
    local first, err, detail = self:read_body(idle)
    if first and self.done and #first <= most then
        return first
    elseif not first then
        return not err and "" or nil, err, detail
    end
    local parts, size = { first }, #first
    while size <= most do
        local piece
        piece, err, detail = self:read_body(idle)
        if not piece then
            if err then
                return nil, err, detail
            end
            return table.concat(parts)
        end
        size = size + #piece
        parts[#parts + 1] = piece
    end
    return nil, "garbage", "its answer is larger than " .. most .. " bytes"
end

--- Done with it: back to the pool if it is clean, else closed.
function Connection:finish()
    if self.done and self.keep and not self.fresh and self.pos > #self.buffer then
        if self.sock:setkeepalive(POOL_IDLE * 1000, POOL_SIZE) then
            return
        end
    end
    self.sock:close()
end

function Connection:close()
    self.sock:close()
end

local function late(deadline)
    return ngx.now() >= deadline and "timeout" or nil
end

--- One small GET on a connection of its own: probes and lists.
-- @param timeout seconds for the whole
-- @param most bytes of the answer
-- @return status and body; or nil, an error word and details
function M.get(peer, path, timeout, most)
    local deadline = ngx.now() + timeout
    local connection, err, detail = M.connect(peer, timeout, true, late, deadline)
    if not connection then
        return nil, err, detail
    end
    connection.sock:settimeouts(nil, timeout * 1000, math.min(timeout, TICK) * 1000)
    local ok, head, body
    ok, err = connection:send("GET " .. path .. " HTTP/1.1\r\nHost: " .. peer.host .. ":" .. peer.port
        .. "\r\nUser-Agent: llm-cluster\r\nAccept: */*\r\nConnection: close\r\n\r\n", {})
    if ok then
        head, err, detail = connection:read_head(deadline)
    end
    if head then
        body, err, detail = connection:read_all(most, math.max(0, deadline - ngx.now()))
    end
    connection:close()
    if not body then
        return nil, err, detail
    end
    return head.status, body
end

return M
