-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Room on the stack of whatever runs, so that no compiled code finds it too small.
--
-- LuaJIT of before July 2023, as in Debian 12, loses a value where that happens at the beginning of a branch: its check for room
-- uses a register that the way back still needs (LuaJIT's issue 1016, mended by its commit b7a8c7c1). So a loop over four peers
-- was seen to go on to a fifth. A coroutine starts with 40 slots, and the garbage collector takes half of a stack of which less
-- than a quarter is in use. What runs here has made its stack grow before, and lies on so many slots that it keeps them.

local M = {}

local LOCALS = 190 -- of a function that is there to take slots; 200 are the most it may have
local FRAMES = 2 -- of such functions; our deepest calls need 340 slots

-- As many frames are made to grow as are held, so the largest stack has twice the slots of both: four times what is held.
local names = {}
for i = 1, LOCALS do
    names[i] = "slot" .. i
end
local make = assert(loadstring(([[
    local function grow(frames)
        local SLOTS
        if frames > 1 then grow(frames - 1) end
    end
    local function hold(frames, f, ...)
        local SLOTS
        local result -- "return f(...)" would give the slots back before the call
        if frames > 1 then
            result = hold(frames - 1, f, ...)
        else
            grow(FRAMES)
            result = f(...)
        end
        return result
    end
    return hold
]]):gsub("SLOTS", table.concat(names, ", ")):gsub("FRAMES", FRAMES), "=stack"))
jit.off(make, true) -- compiled they would keep no slots; what they call is compiled
local hold = make()

-- Since August 2023 the last part of LuaJIT's version is a time.
local is_mended = jit.version:find("^LuaJIT 2%.1%.%d%d%d%d+") ~= nil

--- The same function, with room on its stack. It may yield. Of its results the first is returned.
function M.roomy(f)
    if is_mended then
        return f
    end
    return function(...)
        return hold(FRAMES, f, ...)
    end
end

--- Give room to all timers and threads, too. Before any module takes hold of those functions.
function M.install()
    local at, every, spawn = ngx.timer.at, ngx.timer.every, ngx.thread.spawn
    rawset(ngx.timer, "at", function(delay, f, ...)
        return at(delay, M.roomy(f), ...)
    end)
    rawset(ngx.timer, "every", function(delay, f, ...)
        return every(delay, M.roomy(f), ...)
    end)
    rawset(ngx.thread, "spawn", function(f, ...)
        return spawn(M.roomy(f), ...)
    end)
end

return M
