-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- What the access log says about a request: nginx writes the line (log_format llm in nginx.conf), its Lua part is set here.
--
-- Variables keep their default from nginx.conf ("" or null) where there is nothing to say; setting one is not free.

local format = string.format

local M = {}

local function seconds(value)
    return format("%.3f", value)
end

--- Set the variables. Called once, in log_by_lua.
function M.write(ctx)
    local var, found = ngx.var, ctx.usage
    var.llm_id = ctx.id
    var.llm_attempts = ctx.attempts
    if ctx.key then
        var.llm_key = ctx.key
    end
    if ctx.asked then
        var.llm_model = ctx.asked
    end
    if ctx.peer then
        var.llm_peer = ctx.peer
    end
    if ctx.ttfb then
        var.llm_ttfb = seconds(ctx.ttfb)
    end
    if ctx.waited then
        var.llm_waited = seconds(ctx.waited)
    end
    if ctx.affinity then
        var.llm_affinity = ctx.affinity
    end
    if ctx.stream then
        var.llm_stream = "true"
    end
    if found and found.prompt then
        var.llm_prompt_tokens = found.prompt
    end
    if found and found.completion then
        var.llm_completion_tokens = found.completion
    end
    if found and found.cached then
        var.llm_cached_tokens = found.cached
    end
    if ctx.error then
        var.llm_error = ctx.error
    end
end

return M
