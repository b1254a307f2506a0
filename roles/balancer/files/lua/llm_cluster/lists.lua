-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Lists of models: from the routing table, and merged over the Ollama peers.

local cjson = require "cjson.safe"
local errors = require "llm_cluster.errors"
local exchange = require "llm_cluster.exchange"
local health = require "llm_cluster.health"
local json = require "llm_cluster.json"
local peers = require "llm_cluster.peers"

local M = {}

local CACHE = 1              -- seconds
local TIMEOUT = 2            -- seconds
local MAX_ANSWER = 4194304   -- bytes of one peer's list

local function entry(name)
    return { id = name, object = "model", created = 0, owned_by = "llm.cluster" }
end

--- GET /v1/models: every model of the table, also while its peers are out: a request for it waits, it isn't unknown.
function M.models(view)
    local data = {}
    for i, name in ipairs(view.models) do
        data[i] = entry(name)
    end
    return json.encode { object = "list", data = json.list(data) }
end

--- GET /v1/models/NAME
function M.model(view, asked)
    local name = peers.resolve_model(view.by_model, asked)
    if not name then
        return nil
    end
    return cjson.encode(entry(name))
end

local function in_rotation(view)
    local out = {}
    for _, peer in ipairs(view.peers) do
        if peer.engine == "ollama" and health.is_up(peer.id) and not peers.is_drained(view, peer) then
            out[#out + 1] = peer
        end
    end
    return out
end

--- Ask all Ollama peers at once.
-- @return list of decoded answers, in the table's order, those that failed left out
local function gather(view, path)
    local threads, answers = {}, {}
    for i, peer in ipairs(in_rotation(view)) do
        threads[i] = ngx.thread.spawn(function()
            local status, body = exchange.get(peer, path, TIMEOUT, MAX_ANSWER)
            return status == 200 and cjson.decode(body) or nil
        end)
    end
    for _, thread in ipairs(threads) do
        local ok, answer = ngx.thread.wait(thread)
        if ok and type(answer) == "table" then
            answers[#answers + 1] = answer
        end
    end
    return answers
end

local cache = {} -- path → {at, version, body}

local function cached(view, path, make)
    local hit = cache[path]
    if hit and hit.version == view.version and ngx.now() - hit.at < CACHE then
        return hit.body
    end
    local body = make()
    if body then
        cache[path] = { at = ngx.now(), version = view.version, body = body }
    end
    return body
end

local function unreachable()
    return errors.new(503, "no_node_available", "No node that speaks Ollama's API answers.", { retry_after = 2 })
end

--- GET /api/tags, /api/ps: one name once, only models that the table has.
-- @return JSON, or nil and an error
function M.merged(view, path)
    local body = cached(view, path, function()
        local answers = gather(view, path)
        if #answers == 0 then
            return nil
        end
        local models, seen = {}, {}
        for _, answer in ipairs(answers) do
            for _, model in ipairs(type(answer.models) == "table" and answer.models or {}) do
                local name = type(model) == "table" and (model.name or model.model)
                if type(name) == "string" and not seen[name] and peers.resolve_model(view.by_model, name) then
                    seen[name] = true
                    models[#models + 1] = model
                end
            end
        end
        return json.encode { models = json.list(models) }
    end)
    if not body then
        return nil, unreachable()
    end
    return body
end

--- GET /api/version: of the first peer that answers.
function M.version(view)
    local body = cached(view, "/api/version", function()
        local answer = gather(view, "/api/version")[1]
        return answer and cjson.encode { version = answer.version }
    end)
    if not body then
        return nil, unreachable()
    end
    return body
end

--- GET /health, for load balancers in front and for people.
-- @return HTTP status and JSON
function M.health(view)
    local up, drained, total = 0, 0, 0
    for _, peer in ipairs(view and view.peers or {}) do
        total = total + 1
        if peers.is_drained(view, peer) then
            drained = drained + 1
        elseif health.is_up(peer.id) then
            up = up + 1
        end
    end
    local status = up == 0 and "down" or up + drained < total and "degraded" or "ok"
    return up == 0 and 503 or 200,
        cjson.encode { status = status, peers = { up = up, drained = drained, total = total } }
end

return M
