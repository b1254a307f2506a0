-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Lists of models: from the routing table, and merged over the Ollama peers.

local cjson = require "cjson.safe"
local semaphore = require "ngx.semaphore"

local errors = require "llm_cluster.errors"
local exchange = require "llm_cluster.exchange"
local health = require "llm_cluster.health"
local json = require "llm_cluster.json"
local limits = require "llm_cluster.limits"
local names = require "llm_cluster.names"
local peers = require "llm_cluster.peers"
local routes = require "llm_cluster.routes"

local M = {}

local CACHE = 1              -- seconds, also of a failure
local TIMEOUT = 2            -- seconds
local PATIENCE = 5           -- seconds: more than asking takes
local MAX_ANSWER = 4194304   -- bytes of one peer's list

local function entry(name)
    return { id = name, object = "model", created = 0, owned_by = "llm.cluster" }
end

--- Every name that a request may ask for: the table's models, and the aliases that routes turn into them. Also those whose peers
-- are out: a request for one waits, it isn't unknown.
-- @param key entry of the client's key, or nil: what it may not use is left out
-- @return list of names
function M.names(view, key)
    local out = {}
    for _, list in ipairs { view.models, routes.aliases(view.routes) } do
        for _, name in ipairs(list) do
            if limits.may_use(key, name) then
                out[#out + 1] = name
            end
        end
    end
    return out
end

--- GET /v1/models
function M.models(view, key)
    local data = {}
    for i, name in ipairs(M.names(view, key)) do
        data[i] = entry(name)
    end
    return json.encode { object = "list", data = json.list(data) }
end

--- GET /v1/models/NAME
-- @return JSON, or nil if there is none of that name for the key
function M.model(view, asked, key)
    local known = {}
    for _, name in ipairs(M.names(view, key)) do
        known[name] = true
    end
    local name = names.resolve(known, asked)
    return name and cjson.encode(entry(name))
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

local cache = {} -- path → {version, answered = semaphore, at = seconds or nil: still asking, value or nil: it failed}

--- Ask for all who want to know at present. In a timer: the first of them may leave.
local function ask(view, make)
    local one = { version = view.version, answered = semaphore.new(0) }
    local function done(value)
        one.value, one.at = value, ngx.now()
        one.answered:post(math.max(1, -one.answered:count()))
    end
    local started, err = ngx.timer.at(0, function()
        local ok, value = pcall(make)
        if not ok then
            ngx.log(ngx.ERR, "cannot merge lists: ", value)
        end
        done(ok and value or nil)
    end)
    if not started then
        ngx.log(ngx.ERR, "cannot start a timer: ", err)
        done(nil)
    end
    return one
end

--- What make() returns, remembered for a moment, as is that it returned nothing.
-- @return value; or nil and an error if make() returned nil: no peer answered
local function cached(view, path, make)
    local one = cache[path]
    if not one or one.version ~= view.version or one.at and ngx.now() - one.at >= CACHE then
        one = ask(view, make)
        cache[path] = one
    end
    if not one.at then
        one.answered:wait(PATIENCE)
    end
    if not one.value then
        return nil, errors.new(503, "no_node_available", "No node that speaks Ollama's API answers.", { retry_after = 2 })
    end
    return one.value
end

--- The models in several answers: one name once, only those that the table has.
-- @return list of {name, model = the answer's entry}
local function merge(view, answers)
    local out, seen = {}, {}
    for _, answer in ipairs(answers) do
        for _, model in ipairs(type(answer.models) == "table" and answer.models or {}) do
            local name = type(model) == "table" and (model.name or model.model)
            if type(name) == "string" and not seen[name] and peers.resolve_model(view.by_model, name) then
                seen[name] = true
                out[#out + 1] = { name = name, model = model }
            end
        end
    end
    return out
end

--- GET /api/tags, /api/ps, merged over the peers.
-- @param key entry of the client's key, or nil: models that it may not use are left out
-- @return JSON, or nil and an error
function M.merged(view, path, key)
    local merged, err = cached(view, path, function()
        local answers = gather(view, path)
        return #answers > 0 and merge(view, answers) or nil
    end)
    if not merged then
        return nil, err
    end
    local models = {}
    for _, each in ipairs(merged) do
        if limits.may_use(key, each.name) then
            models[#models + 1] = each.model
        end
    end
    return json.encode { models = json.list(models) }
end

--- GET /api/version: of the first peer that answers.
function M.version(view)
    return cached(view, "/api/version", function()
        local answer = gather(view, "/api/version")[1]
        return answer and cjson.encode { version = answer.version }
    end)
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
