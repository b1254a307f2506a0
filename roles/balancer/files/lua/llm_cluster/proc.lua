-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Two questions for the kernel: when a process started, and whether a client is still there.

local ffi = require "ffi"
local bit = require "bit"
local get_request = require("resty.core.base").get_request

ffi.cdef [[
typedef struct { int fd; short events; short revents; } llm_pollfd;
int poll(llm_pollfd *fds, unsigned long n, int timeout);

/* The first fields of ngx_http_request_t and ngx_connection_t: the same in every nginx since 1.0. */
typedef struct { void *data, *read, *write; int fd; } llm_connection;
typedef struct { uint32_t signature; llm_connection *connection; } llm_request;
]]

local M = {}

local SIGNATURE = 0x50545448 -- "HTTP", NGX_HTTP_MODULE
local POLLERR, POLLHUP, POLLRDHUP = 0x8, 0x10, 0x2000
local GONE = bit.bor(POLLERR, POLLHUP, POLLRDHUP)
local pollfd = ffi.new("llm_pollfd[1]")

--- Start time of a process, as the kernel counts it: tells a process from a later one with the same pid.
-- @return string or nil
function M.start_time(pid)
    local file = io.open("/proc/" .. pid .. "/stat", "rb")
    if not file then
        return nil
    end
    local text = file:read("*a")
    file:close()
    local rest = text and text:match("%) (.*)$")
    if not rest then
        return nil
    end
    local n = 2
    for field in rest:gmatch("%S+") do
        n = n + 1
        if n == 22 then
            return field
        end
    end
    return nil
end

--- Has this request's client closed its side? nginx's own check misses TLS clients that say goodbye first, and pipelining ones.
function M.client_left()
    local request = ffi.cast("llm_request *", get_request())
    if request == nil or request.signature ~= SIGNATURE or request.connection == nil then
        return false
    end
    pollfd[0].fd = request.connection.fd
    pollfd[0].events = POLLRDHUP
    pollfd[0].revents = 0
    return ffi.C.poll(pollfd, 1, 0) > 0 and bit.band(pollfd[0].revents, GONE) ~= 0
end

return M
