-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Until when this worker lives. After a reload or stop nginx lets its requests go on for worker_shutdown_timeout and then closes
-- their connections without a word; so a little earlier they end here, with words.

local proc = require "llm_cluster.proc"

local M = {}

local MARGIN = 1.5           -- seconds before nginx closes the connections

local shutdown_timeout = 0
local ends_at

--- @param seconds worker_shutdown_timeout
function M.init(seconds)
    shutdown_timeout = seconds
end

--- Must this worker's requests end now?
function M.is_over()
    if not ngx.worker.exiting() then
        return false
    end
    local now = ngx.now()
    ends_at = ends_at or now + math.max(0, shutdown_timeout - MARGIN)
    return now >= ends_at
end

--- Why the request of this handler should not go on, or nil.
-- @return "client_left", "shutdown" or nil
function M.interruption()
    return proc.client_left() and "client_left" or M.is_over() and "shutdown" or nil
end

return M
