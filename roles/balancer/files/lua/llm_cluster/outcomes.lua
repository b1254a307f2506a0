-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- What the outcome of an attempt says: about the peer, and whether the request is tried again.
--
-- A request may fail while held by at most MAX_FAILURES peers. A peer is to blame only if the request succeeds elsewhere.

local budget = require "llm_cluster.budget"
local health = require "llm_cluster.health"

local M = {}

local MAX_FAILURES = 2       -- peers that may hold a failing request

--- The peer held the request and did not answer it well.
-- @param why words
-- @param answer its answer of 5xx, or nil
local function note_failure(ctx, peer, why, answer)
    ctx.failures = ctx.failures + 1
    ctx.failed_answer = answer
    ctx.want.avoid[peer.id] = true
    if not answer then
        ctx.want.suspect = ngx.now()
    end
    ctx.blames = ctx.blames or {}
    table.insert(ctx.blames, { peer = peer, why = why })
    health.suspect(peer)
end

--- Did the peer say that it is busy?
function M.is_busy(outcome)
    local status = outcome.kind == "answer" and outcome.head.status
    return status == 503 or status == 429
end

--- Learn from an outcome that is not for the client.
-- @return boolean: try again
function M.judge(ctx, peer, outcome, view)
    local kind = outcome.kind
    if kind == "refused" then -- it is dead, and certainly did not see the request
        health.refused(peer)
        return true
    elseif kind == "unreachable" then
        health.failed(peer, "could not be reached: " .. (outcome.detail or "time-out"), view.limits)
        ctx.want.avoid[peer.id] = true
        return true
    elseif kind == "ejected" or kind == "local" then -- local: that says nothing about the peer
        ctx.want.avoid[peer.id] = true
        return true
    elseif M.is_busy(outcome) then
        health.busy(peer, tonumber((outcome.head.headers["retry-after"] or ""):match("^%d+$")))
        return true
    end
    local why = kind == "answer" and "answered " .. outcome.head.status or outcome.detail or "broke off without an answer"
    note_failure(ctx, peer, why, kind == "answer" and outcome or nil)
    if kind == "garbage" then
        health.garbage(table.remove(ctx.blames).peer, why) -- its fault in any case
    end
    -- A connection that broke means a dead peer more often than not: that is no part of the budget.
    return ctx.failures < MAX_FAILURES and (kind == "died" or kind == "closed" or budget.spend())
end

--- Is the answer one for the client, whatever it says? 501: the engine does not have this at all.
function M.is_final(outcome)
    local status = outcome.kind == "answer" and outcome.head.status
    return status and (status < 500 and status ~= 429 or status == 501)
end

--- The request succeeded nowhere: that says nothing about those who failed it.
function M.acquit(ctx)
    for _, blame in ipairs(ctx.blames) do
        health.acquit(blame.peer)
    end
end

return M
