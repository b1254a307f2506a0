-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- nginx's clock, in a form that LuaJIT compiles.
--
-- ngx.now() of lua-resty-core is nothing but a tail call. When the interpreter calls such a function often, LuaJIT tries to
-- compile it by itself, fails ("leaving loop in root trace"), marks it as hopeless, and from then on gives up on all code that
-- calls it.

local ffi = require "ffi"
require "resty.core.time" -- declares it

local C = ffi.C

local M = {}

--- Seconds since the epoch, to the millisecond, as of this turn of the event loop.
function M.now()
    local seconds = C.ngx_http_lua_ffi_now()
    return seconds
end

return M
