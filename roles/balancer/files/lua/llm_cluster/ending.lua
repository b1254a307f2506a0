-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Slots of engines that go on working for a client that left.
--
-- llama.cpp finishes a prompt, and an answer that is not streamed, whether its client is there or not; only a stream in the
-- middle of its tokens stops. Ollama stops always. A slot that may still be at work stays in use until /slots of the engine
-- reports fewer slots at work than the balancer has in use there, or its time is over. No worker owns such a slot, so a reload
-- changes nothing; the worker that probes looks after them.

local exchange = require "llm_cluster.exchange"
local lock = require "llm_cluster.lock"
local peers = require "llm_cluster.peers"
local prober = require "llm_cluster.prober"
local queue = require "llm_cluster.queue"
local slots = require "llm_cluster.slots"

local M = {}

local LOOK = 0.25            -- seconds between two looks
local LOOKS = 4              -- that must find that an engine has ended
local PAUSE = 0.05           -- seconds between them
local TIMEOUT = 1            -- seconds for one
local MAX_ANSWER = 4194304   -- bytes: /slots may show prompts

local looking = {}           -- peer id → true while a look is under way

--- Slots at work by the engine's own word. @return number, or nil if it does not say
local function at_work(peer)
    local status, body = exchange.get(peer, "/slots", TIMEOUT, MAX_ANSWER)
    if not status and body == "refused" then
        return 0 -- there is no engine any more
    elseif status ~= 200 then
        return nil
    end
    local _, count = body:gsub('"is_processing"%s*:%s*true', "")
    return count
end

--- Slots that are in use here, before and after the engine was asked, but not there.
local function ended(peer)
    local before = slots.busy(peer.id)
    local count = at_work(peer)
    return count and math.max(0, math.min(before, slots.busy(peer.id)) - count) or 0
end

--- Free the slots that a peer has ended with. A request on its way there or back is not at work either, but that passes: only
-- what several looks find counts.
local function examine(peer)
    local number = ended(peer)
    for _ = 2, LOOKS do
        if number > 0 then
            ngx.sleep(PAUSE)
            number = math.min(number, ended(peer))
        end
    end
    -- Another worker may lead by now, and have freed them.
    if prober.leads() and lock.run(slots.free_ended, peer.id, number) > 0 then
        queue.match(peer)
    end
end

local function look(premature, peer)
    if premature then
        return
    end
    local ok, err = pcall(examine, peer)
    looking[peer.id] = nil
    if not ok then
        ngx.log(ngx.ERR, "slots of clients that left ", peer.id, ": ", err)
    end
end

--- Look at every peer that has such slots: each in a timer of its own, so that none waits for another.
local function tick(premature)
    local view = not premature and prober.leads() and peers.view()
    for _, peer in ipairs(view and view.peers or {}) do
        if not looking[peer.id] and slots.ending(peer.id) > 0 then
            local ok, err = ngx.timer.at(0, look, peer)
            looking[peer.id] = ok
            if not ok then
                ngx.log(ngx.ERR, "slots of clients that left ", peer.id, " are not watched: ", err)
            end
        end
    end
end

local function free(claim)
    slots.release(claim)
    queue.match(claim.peer)
end

--- The request of this claim is over here. Frees its slot, now or as soon as the engine has ended.
-- @param claim from slots.hold()
-- @param may_go_on boolean: the engine was at work on it and may not notice that the client left
function M.finish(claim, may_go_on)
    local view = peers.view()
    if not may_go_on or claim.peer.engine ~= "llama_cpp" or not view or view.limits.ending_timeout == 0 then
        return free(claim)
    end
    local ok, err = lock.run(slots.let_end, claim, ngx.now() + view.limits.ending_timeout)
    if not ok then
        ngx.log(ngx.ERR, "the slot of a client that left is not kept: ", err, "; a larger balancer_slots_dict_mb helps")
        free(claim)
    end
end

--- Start in this worker.
function M.start()
    assert(ngx.timer.every(LOOK, tick))
end

return M
