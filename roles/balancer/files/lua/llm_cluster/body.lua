-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- A request's body as one string, wherever nginx put it.

local M = {}

--- Read the whole body. It may yield.
-- @return string, empty if there is none
function M.read()
    ngx.req.read_body()
    local text = ngx.req.get_body_data()
    if text then
        return text
    end
    local name = ngx.req.get_body_file()
    local file = name and io.open(name, "rb")
    if not file then
        return ""
    end
    text = file:read("*a")
    file:close()
    return text or ""
end

return M
