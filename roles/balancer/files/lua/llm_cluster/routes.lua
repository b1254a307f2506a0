-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Rules on a request (model, prompt size, turns …) that narrow which peers may take it. Pure.

local M = {}

function M.check()
end

function M.compile()
    return {}
end

return M
