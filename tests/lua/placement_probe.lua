-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Served in a worker by the benchmark (bench/scenarios/many_peers.py): what a placement costs, with the peers and their state as
-- they are there. A slot is chosen, taken and given back, as for a request that comes while slots are free.

local peers = require "llm_cluster.peers"
local queue = require "llm_cluster.queue"
local routes = require "llm_cluster.routes"
local slots = require "llm_cluster.slots"
local workers = require "llm_cluster.workers"

local TIMES = 20000
local MODEL = "m"

local view = peers.view()
local set = routes.peers(view, nil, MODEL)

local function place()
    local want = { model = MODEL, since = ngx.now(), avoid = {} }
    local peer = assert(queue.try(set, want))
    slots.put_back(peer.id, workers.pid)
end

for _ = 1, TIMES / 10 do -- until it is compiled
    place()
end
local began = os.clock()
for _ = 1, TIMES do
    place()
end
ngx.say(require("cjson").encode { microseconds = (os.clock() - began) / TIMES * 1e6 })
