-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Errors as clients read them.
--
-- Everything has OpenAI's shape: {"error": {"message", "type", "param", "code"}}. /v1/messages adds "type": "error" around it,
-- which Anthropic's clients look for. Ollama's own routes answer {"error": "message"}: that is all its clients read.
-- Pure but for send().

local cjson = require "cjson.safe"

local M = {}

local TYPES = {
    [400] = "invalid_request_error", [401] = "authentication_error", [404] = "not_found_error",
    [411] = "invalid_request_error", [413] = "invalid_request_error", [429] = "rate_limit_error",
    [502] = "upstream_error", [503] = "overloaded_error", [504] = "timeout_error",
}

--- An error.
-- @param status number, HTTP
-- @param code string, stable, for programs
-- @param message string, for people
-- @param extra {param = string, retry_after = seconds, should_retry = boolean} or nil
function M.new(status, code, message, extra)
    extra = extra or {}
    return {
        status = status, code = code, message = message, param = extra.param,
        retry_after = extra.retry_after, should_retry = extra.should_retry,
        type = TYPES[status] or (status >= 500 and "server_error" or "invalid_request_error"),
    }
end

local function detail(err)
    return { message = err.message, type = err.type, param = err.param or cjson.null, code = err.code }
end

--- The body of an error answer.
-- @param api "openai", "responses", "messages" or "ollama"
function M.body(err, api)
    if api == "ollama" then
        return cjson.encode { error = err.message }
    elseif api == "messages" then
        return cjson.encode { type = "error", error = detail(err) }
    end
    return cjson.encode { error = detail(err) }
end

--- The last event of a stream that broke, in the API's own shape.
function M.event(err, api)
    if api == "ollama" then
        return cjson.encode { error = err.message } .. "\n"
    elseif api == "messages" then
        return "event: error\ndata: " .. cjson.encode { type = "error", error = detail(err) } .. "\n\n"
    elseif api == "responses" then
        return "event: error\ndata: " .. cjson.encode {
            type = "error", code = err.code, message = err.message, param = cjson.null, error = detail(err),
        } .. "\n\n"
    end
    return "data: " .. cjson.encode { error = detail(err) } .. "\n\n"
end

--- Answer the request with the error. Nothing may have been sent yet.
function M.send(err, api)
    local body = M.body(err, api) .. "\n"
    ngx.status = err.status
    local header = ngx.header
    header["Content-Type"] = "application/json"
    header["Content-Length"] = #body
    if err.retry_after then
        header["Retry-After"] = math.ceil(err.retry_after)
    end
    if err.should_retry ~= nil then
        header["x-should-retry"] = tostring(err.should_retry)
    end
    if err.status == 401 then
        header["WWW-Authenticate"] = 'Bearer realm="llm"'
    end
    ngx.print(body)
end

return M
