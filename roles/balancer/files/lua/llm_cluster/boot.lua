-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Start-up: every module is loaded in the master, so that a worker that respawns never reads files half replaced.

local ffi = require "ffi"

rawset(ngx, "now", require("llm_cluster.clock").now)
local stack = require "llm_cluster.stack"
stack.install()

local admin = require "llm_cluster.admin"
local attempt = require "llm_cluster.attempt"
local ending = require "llm_cluster.ending"
local health = require "llm_cluster.health"
local history = require "llm_cluster.history"
local lifetime = require "llm_cluster.lifetime"
local peers = require "llm_cluster.peers"
local proxy = require "llm_cluster.proxy"
local status = require "llm_cluster.status"
local workers = require "llm_cluster.workers"

-- Whatever nginx.conf calls for a request.
admin.run, status.run = stack.roomy(admin.run), stack.roomy(status.run)
proxy.run, proxy.log, proxy.nginx_error = stack.roomy(proxy.run), stack.roomy(proxy.log), stack.roomy(proxy.nginx_error)

local M = {}

--- init_by_lua
-- @param options {state_dir = path, peer_header = boolean, shutdown_timeout = seconds}
function M.init(options)
    peers.init(options.state_dir)
    attempt.peer_header = options.peer_header
    lifetime.init(options.shutdown_timeout)
end

ffi.cdef [[
unsigned int umask(unsigned int mask);
]]
local OWNER_AND_GROUP = 0x17 -- octal 027: what workers write is nobody else's; nginx itself starts them with no mask at all

--- init_worker_by_lua
function M.init_worker()
    ffi.C.umask(OWNER_AND_GROUP)
    workers.register()
    health.start()
    ending.start()
    history.start()
end

return M
