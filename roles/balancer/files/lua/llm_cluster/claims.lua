-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Get a slot for a request: a free one at once, or a place in the queue until there is one.

local attempt = require "llm_cluster.attempt"
local health = require "llm_cluster.health"
local lifetime = require "llm_cluster.lifetime"
local peers = require "llm_cluster.peers"
local prefix = require "llm_cluster.prefix"
local queue = require "llm_cluster.queue"
local request = require "llm_cluster.request"
local routes = require "llm_cluster.routes"
local slots = require "llm_cluster.slots"

local M = {}

--- How much sooner those who hold a part of the request have read it.
-- @return {peer id = seconds}, or nil if nobody holds any or it isn't known how long reading takes
local function savings(ctx, view)
    local reading = ctx.want.holders and health.reading(ctx.model)
    if not reading then
        return nil
    end
    local out, keys, most = {}, ctx.prefix, view.limits.affinity_max_wait
    for id in pairs(ctx.want.holders) do
        local depth = keys.depths[id] -- none where the client only says that it belongs together
        out[id] = depth and math.min(most, reading * ctx.length * depth / #keys)
    end
    return next(out) and out or nil
end

--- Note who holds how much of the request's prefix.
function M.look_up_prefix(ctx, view)
    if view.table.policy ~= "affinity" or ctx.surface.slotless or #view.peers == 1 then
        return
    end
    ctx.pin = prefix.pin(ctx.parsed, ngx.var.http_x_llm_session)
    ctx.prefix = prefix.keys(ctx.parsed, ctx.model, view.limits.affinity_blocks, ctx.surface.path)
    ctx.want.holders = prefix.holders(ctx.prefix, ctx.pin, view, ctx.ticket)
    ctx.want.saves = savings(ctx, view)
end

--- Remember that the peer will hold the prefix now, and note how much it has still to read.
function M.remember_prefix(ctx, peer, view)
    ctx.unread = ctx.length
    if ctx.prefix then
        local holders = ctx.want.holders
        ctx.affinity = holders and (holders[peer.id] and "hit" or "miss") or nil
        local held = ctx.prefix.depths[peer.id]
        ctx.unread = held and ctx.length * (1 - held / #ctx.prefix) or ctx.length
        prefix.remember(ctx.prefix, ctx.pin, peer, view.limits.affinity_ttl)
    end
end

--- The route that the request matches, or nil.
function M.find_rule(ctx, view)
    if #view.routes == 0 then
        return nil
    end
    local needs = routes.needs(view.routes)
    if (needs.messages or needs.prompt_chars) and not ctx.shape then
        ctx.shape = request.shape(ctx.parsed, ctx.surface.path)
    end
    local shape = ctx.shape
    return routes.match(view.routes, {
        model = ctx.asked, path = ctx.surface.path, stream = ctx.stream, key = ctx.key,
        messages = shape and shape.messages, prompt_chars = shape and shape.prompt_chars,
    })
end

--- The route's other model, if the request's own has no peer in rotation. @return boolean
local function fall_back(ctx, view)
    local name = not ctx.fell_back and ctx.rule and ctx.rule.fallback
    local model = name and peers.resolve_model(view.by_model, name)
    if not model then
        return false
    end
    ctx.fell_back, ctx.rule, ctx.model = true, nil, model
    ctx.want.model, ctx.want.has_fallback = model, nil
    attempt.set_body(ctx, name)
    M.look_up_prefix(ctx, view)
    return true
end

--- The peer is ours: say which slot is.
-- @param granted boolean: by the queue, which gives a slot also to who needs none
local function claimed(ctx, peer, granted)
    if granted or not ctx.surface.slotless then
        ctx.claim = slots.hold(peer, ctx, ctx.want.suspect)
    end
    return peer
end

local function find_peer(list, id)
    for i = 1, #list do
        if list[i].id == id then
            return list[i]
        end
    end
    return nil
end

--- The peers that may take the request, by the table in force. @return set, or nil if the model is gone
local function candidates(ctx)
    local view = peers.view()
    if view ~= ctx.view then -- another table since: its routes hold, but for the model, which is in the body already
        ctx.view = view
        ctx.rule = not ctx.fell_back and M.find_rule(ctx, view) or nil
        ctx.want.has_fallback = ctx.rule and ctx.rule.fallback ~= nil
    end
    local set = routes.peers(view, ctx.rule, ctx.model, ctx.surface.engine)
    ctx.want.preferred = set and set.preferred
    return set
end

--- There is no more waiting: take any slot that is free.
-- @return peer; or nil and why not
local function take_any(ctx, set)
    ctx.want.saves = nil
    local peer, why = queue.try(set, ctx.want)
    return peer and claimed(ctx, peer), why
end

--- Wait for a slot until ctx.deadline.
-- @param why there was none at once: "busy", "out", "avoided"
local function wait_for_slot(ctx, set, why)
    local want, waiter = ctx.want, nil
    while true do
        local peer, id, detail
        if not waiter and why == "avoided" then
            return nil, why
        elseif not waiter and (why ~= "out" or not fall_back(ctx, peers.view())) then
            if #set.peers == 0 then
                return nil, "none"
            end
            waiter, why, detail = queue.join(ctx.ticket, set, want, ctx.length, ctx.queued)
            if not waiter then
                return take_any(ctx, set), why, detail
            end
            ctx.waiter, ctx.queued = waiter, true
        end
        if waiter then
            id, why = queue.wait(waiter, ctx.deadline, lifetime.interruption)
            if id then
                return claimed(ctx, find_peer(set.peers, id), true)
            elseif why == "deadline" then
                return take_any(ctx, set)
            elseif why ~= "changed" and why ~= "out" then
                return nil, why
            elseif why == "out" then
                waiter = nil
                fall_back(ctx, peers.view())
            end
        end
        local current = candidates(ctx)
        if waiter and (not current or current.key ~= set.key) then
            queue.leave(waiter)
            waiter = nil
        end
        if not current then
            return nil, "gone"
        end
        set = current
        if not waiter then
            peer, why = queue.try(set, want)
            if peer then
                return claimed(ctx, peer)
            end
        end
    end
end

--- Get a slot: a free one at once, else wait for one. Sets ctx.claim.
-- @return peer; or nil and "gone" (the model), "none" (the route leaves no peer), "avoided" (only peers that failed the request
--   are left), "full" (and seconds), "busy" or "out" (at the deadline), "client_left" or "shutdown"
function M.place(ctx)
    local set = candidates(ctx)
    if not set then
        return nil, "gone"
    end
    local peer, why = queue.try(set, ctx.want)
    if peer then
        return claimed(ctx, peer)
    end
    return wait_for_slot(ctx, set, why)
end

return M
