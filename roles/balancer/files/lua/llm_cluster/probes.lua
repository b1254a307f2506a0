-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- What a probe asks an engine, and what its answer means.
--
--   llama_cpp   GET /health: 200 as soon as its model is loaded
--   ollama      GET /api/tags: it lives, and which models it has; GET /api/ps: which are loaded
--
-- That says that the engine answers, not that it generates. The canary does: one token of each model that is loaded.

local cjson = require "cjson.safe"
local semaphore = require "ngx.semaphore"

local exchange = require "llm_cluster.exchange"
local peers = require "llm_cluster.peers"

local M = {}

local MAX_ANSWER = 1048576   -- bytes
local GRACE = 0.02           -- seconds after which a probe that its time-out didn't end is cut off

--- Call f, for so many seconds at most, whatever it waits for.
-- @return what f returns; or nil and "timeout"
local function within(seconds, f, ...)
    local over, result = semaphore.new(0), nil
    local thread = ngx.thread.spawn(function(...)
        result = { f(...) }
        over:post(1)
    end, ...)
    -- After a pause of the whole machine both are there: the answer and the time-out.
    if not over:wait(seconds + GRACE) and not result then
        ngx.thread.kill(thread)
        return nil, "timeout"
    end
    return unpack(result, 1, 3)
end

--- @return body; or nil and why, which is nil if the connection was refused
-- Raises an error if none could be made for a reason of this host, which says nothing about the peer.
local function get(peer, path, timeout)
    local status, body, detail = within(timeout, exchange.get, peer, path, timeout, MAX_ANSWER)
    if status == 200 then
        return body
    elseif status then
        return nil, "probe answered " .. status
    elseif body == "refused" then
        return nil, nil
    elseif body == "local" then
        error(detail, 0)
    elseif body == "timeout" or detail == "timeout" then
        return nil, "probe not answered within " .. timeout .. " s"
    end
    return nil, "probe: " .. (detail or body)
end

--- Names in an answer of /api/tags or /api/ps. @return set, or nil
local function names_in(body)
    local decoded = cjson.decode(body)
    if type(decoded) ~= "table" or type(decoded.models) ~= "table" then
        return nil
    end
    local out = {}
    for _, model in ipairs(decoded.models) do
        if type(model) == "table" and type(model.name) == "string" then
            out[model.name] = true
        end
    end
    return out
end

--- The peer's models that are not among these. Pure.
-- @param names set, as the engine writes them
-- @return list
function M.missing(models, names)
    local out = {}
    for _, model in ipairs(models) do
        if not peers.resolve_model(names, model) then
            out[#out + 1] = model
        end
    end
    return out
end

local ask = {}

function ask.llama_cpp(peer, timeout)
    local body, why = get(peer, "/health", timeout)
    return body ~= nil, why
end

function ask.ollama(peer, timeout)
    local body, why = get(peer, "/api/tags", timeout)
    if not body then
        return false, why
    end
    local names = names_in(body)
    if not names then
        return false, "probe: its list of models is none"
    end
    return true, { lacks = M.missing(peer.models, names) }
end

--- Does the peer answer?
-- @param timeout seconds for the whole
-- @return true and {lacks = list of models} or nil; or false and why, which is nil if the connection was refused
function M.ask(peer, timeout)
    return ask[peer.engine](peer, timeout)
end

--- Which of its models are not loaded.
-- @return list; or nil if it can't be said
function M.cold(peer, timeout)
    if peer.engine ~= "ollama" then
        return nil
    end
    local body = get(peer, "/api/ps", timeout)
    local names = body and names_in(body)
    return names and M.missing(peer.models, names)
end

--- One token. @return HTTP status; or nil, an error word and details
local function generate(peer, model, timeout)
    local body = cjson.encode {
        model = model, messages = { { role = "user", content = "Hello" } }, max_tokens = 1, stream = false,
    }
    local connection, err, detail = exchange.connect(peer, timeout, true)
    if err == "local" then
        return 503 -- nothing is known, as of a busy peer
    elseif not connection then
        return nil, err, detail
    end
    local head, text
    local ok
    ok, err = connection:send("POST /v1/chat/completions HTTP/1.1\r\nHost: " .. peer.host .. ":" .. peer.port
        .. "\r\nUser-Agent: llm-cluster\r\nContent-Type: application/json\r\nContent-Length: " .. #body
        .. "\r\nConnection: close\r\n\r\n", { body })
    if ok then
        local deadline = ngx.now() + timeout
        head, err, detail = connection:read_head(deadline)
        if head then
            text, err, detail = connection:read_all(MAX_ANSWER, timeout)
        end
    end
    connection:close()
    return text and head.status, err, detail
end

--- Ask a model for one token.
-- @param timeout seconds for the whole
-- @return true (it generates), false and why, or nil (it is busy: nothing is known)
function M.canary(peer, model, timeout)
    local status, err, detail = within(timeout, generate, peer, model, timeout)
    if status == 503 or status == 429 then
        return nil
    elseif status and (status < 500 or status == 501) then
        return true -- also a model that can't chat says so with a 4xx or 501
    elseif status then
        return false, "canary: " .. model .. " answered " .. status
    end
    return false, "canary: " .. model .. ": " .. (err == "timeout" and "no token within " .. timeout .. " s" or detail or err)
end

return M
