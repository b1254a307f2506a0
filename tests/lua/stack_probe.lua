-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Served by test_stack.py: the fault of LuaJIT that llm_cluster/stack.lua is about, in the way it was met.
-- A loop's branch was given up by the compiler within a function whose frame is large. In a coroutine with a small stack the way
-- into that branch finds no room, and the loop's end is lost.

local stack = require "llm_cluster.stack"

local TURNS = 20
local TIMES = 50

local slots = {}
for i = 1, 60 do
    slots[i] = "slot" .. i
end
local count = assert(loadstring(([[
    local function uncompiled() end
    jit.off(uncompiled)
    local function wide(item)
        local SLOTS
        if item.slow > 0 then
            uncompiled()
        end
        return 1
    end
    return function(list)
        local turns = 0
        for i = 1, #list do
            turns = turns + wide(list[i])
        end
        return turns
    end
]]):gsub("SLOTS", table.concat(slots, ", "))))()

local function list(has_slow)
    local out = {}
    for i = 1, TURNS do
        out[i] = { slow = has_slow and i % 4 == 0 and 1 or 0 }
    end
    return out
end

local quick, mixed = list(false), list(true)
for _ = 1, 60 do
    count(quick) -- the loop is compiled
end
for _ = 1, 60 do
    count(mixed) -- the branch is given up
end

local function in_coroutine(f)
    local _, turns = coroutine.resume(coroutine.create(f), mixed)
    return turns
end

local function in_thread(f)
    local _, turns = ngx.thread.wait(ngx.thread.spawn(f, mixed))
    return turns
end

local function wrong(run, f)
    local times = 0
    for _ = 1, TIMES do
        times = times + (run(f) == TURNS and 0 or 1)
    end
    return times
end

ngx.say(require("cjson").encode {
    version = jit.version,
    bare = wrong(in_coroutine, count),
    roomy = wrong(in_coroutine, stack.roomy(count)),
    threads = wrong(in_thread, count),
})
