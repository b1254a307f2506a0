-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Names and patterns of names: `*` stands for anything, every other character for itself. Pure.

local find, sub = string.find, string.sub

local M = {}

local LATEST = ":latest"

--- The same model as Ollama writes it too: without `:latest` if it ends so, else with it.
local function twin(name)
    if #name > #LATEST and sub(name, -#LATEST) == LATEST then
        return sub(name, 1, -#LATEST - 1)
    end
    return name .. LATEST
end

--- The name under which a table knows a model: as asked, else with or without `:latest`.
-- @param known set of names
-- @return name or nil
function M.resolve(known, asked)
    if known[asked] then
        return asked
    end
    local other = twin(asked)
    return known[other] and other or nil
end

--- Cut a pattern at its stars.
local function cut(glob)
    local parts, from = {}, 1
    while true do
        local star = find(glob, "*", from, true)
        parts[#parts + 1] = sub(glob, from, star and star - 1)
        if not star then
            return parts
        end
        from = star + 1
    end
end

--- Each part is looked for once, from left to right: no pattern makes this slow.
local function fits(parts, name)
    local first, last = parts[1], parts[#parts]
    if #name < #first + #last or sub(name, 1, #first) ~= first or sub(name, #name - #last + 1) ~= last then
        return false
    end
    local at, room = #first + 1, #name - #last
    for i = 2, #parts - 1 do
        local from, to = find(name, parts[i], at, true)
        if parts[i] ~= "" then
            if not from or to > room then
                return false
            end
            at = to + 1
        end
    end
    return true
end

--- Make patterns ready for matches().
-- @param patterns one pattern or a list of them
function M.compile(patterns)
    local compiled = { exact = {}, globs = {} }
    for _, pattern in ipairs(type(patterns) == "table" and patterns or { patterns }) do
        if find(pattern, "*", 1, true) then
            table.insert(compiled.globs, cut(pattern))
        else
            compiled.exact[pattern] = true
        end
    end
    return compiled
end

--- Does any of the patterns fit the name?
function M.matches(compiled, name)
    if compiled.exact[name] then
        return true
    end
    local globs = compiled.globs
    for i = 1, #globs do
        if fits(globs[i], name) then
            return true
        end
    end
    return false
end

--- The same for the name of a model: `m` and `m:latest` are one.
function M.matches_model(compiled, name)
    return M.matches(compiled, name) or M.matches(compiled, twin(name))
end

return M
