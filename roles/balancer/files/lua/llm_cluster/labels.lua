-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Conditions on a peer's labels, as `require` and `prefer` of a route state them. Pure.
--
-- A condition is ">24", ">=24", "<24", "<=24", "=x", "!=x", a plain value (equal to it), or a list of those (any of them).
-- Numbers are compared as numbers, also where they are written as text. Of a label that is a list any element may meet the
-- condition. "!=x" is the opposite of "=x": of a list no element may be x. A peer without the label meets that, and nothing else.

local find, match, sub = string.find, string.match, string.sub

local M = {}

local ORDERS = {
    [">"] = function(a, b) return a > b end,
    [">="] = function(a, b) return a >= b end,
    ["<"] = function(a, b) return a < b end,
    ["<="] = function(a, b) return a <= b end,
}

--- A number, also one written as text; nil for anything else.
local function number(value)
    if type(value) == "number" then
        return value
    end
    if type(value) == "string" and find(value, "^%-?%d+%.?%d*$") then
        return tonumber(value)
    end
    return nil
end

local function is_scalar(value)
    local kind = type(value)
    return kind == "string" or kind == "number" or kind == "boolean"
end

local function equal(a, b)
    local x, y = number(a), number(b)
    if x and y then
        return x == y
    end
    return tostring(a) == tostring(b)
end

--- Does the label, or any element of it, stand in this relation?
local function any(label, holds, wanted)
    if type(label) ~= "table" then
        return is_scalar(label) and holds(label, wanted)
    end
    for _, element in ipairs(label) do
        if is_scalar(element) and holds(element, wanted) then
            return true
        end
    end
    return false
end

local function ordered(order)
    return function(label, wanted)
        local value = number(label)
        return value ~= nil and order(value, wanted)
    end
end

--- @return a function of a label's value; or nil and what is wrong
local function compile_one(condition)
    if not is_scalar(condition) then
        return nil, "must be a text, a number, true, false or a list of those"
    end
    local operator, operand = "=", condition
    if type(condition) == "string" then
        operator, operand = match(condition, "^%s*([<>!=]+)%s*(.-)%s*$")
        if not operator then
            operator, operand = "=", condition
        end
    end
    if operand == "" then
        return nil, "'" .. condition .. "' says not what to compare with"
    end
    if operator == "=" or operator == "!=" then
        local wanted = operator == "="
        return function(label)
            return any(label, equal, operand) == wanted
        end
    end
    if not ORDERS[operator] then
        return nil, "'" .. condition .. "': use one of > >= < <= = !="
    end
    local limit = number(operand)
    if not limit then
        return nil, "'" .. condition .. "': " .. operator .. " needs a plain number, without a unit"
    end
    local holds = ordered(ORDERS[operator])
    return function(label)
        return any(label, holds, limit)
    end
end

--- Make a condition ready.
-- @return a function: a label's value (nil if the peer lacks it) → boolean; or nil and what is wrong
function M.compile(condition)
    if type(condition) ~= "table" then
        return compile_one(condition)
    end
    if #condition == 0 then
        return nil, "must not be an empty list, nor an object"
    end
    local tests = {}
    for i, each in ipairs(condition) do
        local test, err = compile_one(each)
        if not test then
            return nil, err
        end
        tests[i] = test
    end
    return function(label)
        for i = 1, #tests do
            if tests[i](label) then
                return true
            end
        end
        return false
    end
end

--- A condition in words, for messages.
function M.words(name, condition)
    if type(condition) == "table" then
        local parts = {}
        for i, each in ipairs(condition) do
            parts[i] = M.words(name, each)
        end
        return table.concat(parts, " or ")
    end
    local text = tostring(condition)
    return name .. (find(sub(text, 1, 1), "[<>!=]") and " " or " = ") .. text
end

return M
