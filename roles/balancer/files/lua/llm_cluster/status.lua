-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- What a person and a monitoring system may see: /metrics and /cluster.

local M = {}

--- content_by_lua
function M.run()
    ngx.exit(404)
end

return M
