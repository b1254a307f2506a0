-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Slots of engines that go on working for a client that left.
--
-- llama.cpp finishes a prompt, and an answer that is not streamed, whether its client is there or not; only a stream in the
-- middle of its tokens stops. Ollama stops always. A slot that may still be at work stays in use until /slots of the engine
-- reports fewer slots at work than the balancer has requests for.

local exchange = require "llm_cluster.exchange"
local peers = require "llm_cluster.peers"
local queue = require "llm_cluster.queue"
local slots = require "llm_cluster.slots"

local M = {}

local LOOK = 0.25            -- seconds between two looks
local TIMEOUT = 1            -- seconds for one
local MAX_ANSWER = 4194304   -- bytes: /slots may show prompts

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

local function free(claim)
    slots.release(claim)
    queue.match(claim.peer)
end

--- Look again later. A timer each, rather than a loop in one: a timer's memory is given back when it ends.
local look

local function later(claim, until_)
    local ok, err = ngx.timer.at(LOOK, look, claim, until_)
    if not ok then
        ngx.log(ngx.ERR, "the slot of a client that left is not watched: ", err)
        free(claim)
    end
end

function look(premature, claim, until_)
    if premature or ngx.now() >= until_ then
        return free(claim)
    end
    local count = at_work(claim.peer)
    local ending = slots.ending(claim.id)
    if count and count - (slots.busy(claim.id) - ending) < ending then
        return free(claim)
    end
    later(claim, until_)
end

--- The request of this claim is over here. Frees its slot, now or as soon as the engine has ended.
-- @param claim from slots.hold()
-- @param may_go_on boolean: the engine was at work on it and may not notice that the client left
function M.finish(claim, may_go_on)
    local view = peers.view()
    if not may_go_on or claim.peer.engine ~= "llama_cpp" or not view or view.limits.ending_timeout == 0 then
        return free(claim)
    end
    slots.mark_ending(claim)
    later(claim, ngx.now() + view.limits.ending_timeout)
end

return M
