-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Start-up: every module is loaded in the master, so that a worker that respawns never reads files half replaced.

local health = require "llm_cluster.health"
local peers = require "llm_cluster.peers"
local slots = require "llm_cluster.slots"
require "llm_cluster.admin"
require "llm_cluster.proxy"
require "ngx.semaphore"

local M = {}

--- init_by_lua
-- @param options {state_dir = path, peer_header = boolean}
function M.init(options)
    peers.init(options.state_dir)
    require("llm_cluster.proxy").peer_header = options.peer_header
end

--- init_worker_by_lua
function M.init_worker()
    slots.register()
    health.start()
end

return M
