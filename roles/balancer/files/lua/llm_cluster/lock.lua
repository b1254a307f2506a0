-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- One lock over all workers, for short work that must not yield: so it also works in log_by_lua.

local ffi = require "ffi"
local workers = require "llm_cluster.workers"

ffi.cdef [[
int usleep(unsigned int usec);
]]

local M = {}

local DICT = "llm_slots"
local NAP = 20               -- microseconds between two tries
local SPINS = 200            -- tries before the holder is looked at

local function acquire(d, pid)
    local spins = 0
    while not d:add("lock", pid) do
        spins = spins + 1
        if spins % SPINS == 0 then
            local holder = d:get("lock")
            -- Only one may break a dead worker's lock, or a second one, that slept meanwhile, would break the first one's.
            if holder and not workers.alive(holder) and d:add("lock_break", pid, 1) and d:get("lock") == holder then
                d:delete("lock")
            end
        end
        ffi.C.usleep(NAP)
    end
end

--- Run a function under the lock. It must not yield.
-- @param f function; gets the dict, then the other arguments
-- @return its first two results; its error is raised again, with the lock given back
function M.run(f, ...)
    local d = ngx.shared[DICT]
    acquire(d, workers.pid)
    local ok, a, b = pcall(f, d, ...)
    d:delete("lock")
    if not ok then
        error(a, 0)
    end
    return a, b
end

return M
