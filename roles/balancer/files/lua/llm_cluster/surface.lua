-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The public surface: exactly these methods and paths exist, everything else is 404. Pure.
--
-- The path sent to a peer is the one written here, never the client's bytes; query strings are not passed on.

local sub = string.sub

local M = {}

--- kind: what proxy.lua does with it. api: shape of errors and streams. engine: only peers of this engine. marker: how a
-- complete stream ends (events.lua). stream_default: what an absent `stream` means. slotless: answered beside the slots.
local ROUTES = {
    ["POST /v1/chat/completions"] = { kind = "inference", api = "openai", marker = "done" },
    ["POST /v1/completions"] = { kind = "inference", api = "openai", marker = "done" },
    ["POST /v1/embeddings"] = { kind = "inference", api = "openai", marker = "done" },
    ["POST /v1/rerank"] = { kind = "inference", api = "openai", marker = "done" },
    ["POST /v1/responses"] = { kind = "inference", api = "responses", marker = "response" },
    ["POST /v1/messages"] = { kind = "inference", api = "messages", marker = "message" },
    ["POST /v1/messages/count_tokens"] = { kind = "inference", api = "messages", marker = "message", slotless = true },
    ["GET /v1/models"] = { kind = "models", api = "openai" },
    ["POST /api/chat"] = { kind = "inference", api = "ollama", engine = "ollama", stream_default = true },
    ["POST /api/generate"] = { kind = "inference", api = "ollama", engine = "ollama", stream_default = true },
    ["POST /api/embed"] = { kind = "inference", api = "ollama", engine = "ollama" },
    ["POST /api/embeddings"] = { kind = "inference", api = "ollama", engine = "ollama" },
    ["POST /api/show"] = { kind = "inference", api = "ollama", engine = "ollama", slotless = true, name_key = "name" },
    ["GET /api/tags"] = { kind = "tags", api = "ollama", engine = "ollama" },
    ["GET /api/ps"] = { kind = "ps", api = "ollama", engine = "ollama" },
    ["GET /api/version"] = { kind = "version", api = "ollama", engine = "ollama" },
    ["GET /health"] = { kind = "health", api = "openai", open = true },
}
for key, route in pairs(ROUTES) do
    route.path = key:match(" (.*)$")
end
local MODEL = { kind = "model", api = "openai", path = "/v1/models/{id}" }
local MODELS_PREFIX = "/v1/models/"

--- Find what to do.
-- @param method string
-- @param path string, decoded and normalised
-- @return route and, for one model, its name; or nil
function M.find(method, path)
    if method == "HEAD" then
        method = "GET"
    end
    local route = ROUTES[method .. " " .. path]
    if route then
        return route
    end
    if method == "GET" and sub(path, 1, #MODELS_PREFIX) == MODELS_PREFIX and #path > #MODELS_PREFIX then
        return MODEL, sub(path, #MODELS_PREFIX + 1)
    end
    return nil
end

--- The API a path belongs to, for the shape of an error about it.
function M.api_of(path)
    if sub(path, 1, 5) == "/api/" then
        return "ollama"
    elseif sub(path, 1, 12) == "/v1/messages" then
        return "messages"
    elseif path == "/v1/responses" then
        return "responses"
    end
    return "openai"
end

M.routes = ROUTES

return M
