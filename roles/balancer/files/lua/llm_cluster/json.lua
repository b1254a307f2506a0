-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- JSON out: Debian's cjson writes every empty table as {}, so an empty list needs a stand-in.

local cjson = require "cjson.safe"

local M = {}

local STAND_IN = "\1[]"
local ENCODED = '"\\u0001[]"'

--- The list itself, or what encode() writes as [].
function M.list(t)
    return #t > 0 and t or STAND_IN
end

--- JSON of a value in which empty lists went through list().
function M.encode(value)
    local text = cjson.encode(value)
    local out, from = {}, 1
    while true do
        local s, e = text:find(ENCODED, from, true)
        if not s then
            out[#out + 1] = text:sub(from)
            return table.concat(out)
        end
        out[#out + 1] = text:sub(from, s - 1)
        out[#out + 1] = "[]"
        from = e + 1
    end
end

return M
