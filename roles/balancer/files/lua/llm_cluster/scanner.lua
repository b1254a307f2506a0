-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Steps over JSON in memory: strings, containers, values, without decoding them. Pure.
--
-- Offsets count from 0; a range is [first, end). Strings are skipped with memchr. Nothing here reads at or beyond the end it is
-- given, whatever the bytes are.

local bit = require "bit"
local ffi = require "ffi"

local band, bor = bit.band, bit.bor
local byte, find, sub = string.byte, string.find, string.sub

ffi.cdef [[
void *memchr(const void *s, int c, size_t n);
]]
local C = ffi.C
local bytes_t = ffi.typeof("const uint8_t *")
local words_t = ffi.typeof("const int32_t *")
local HIGH_BITS = bit.tobit(0x80808080)

local MAX_DEPTH = 200

local QUOTE, BACKSLASH, OPEN_OBJECT, OPEN_ARRAY = 34, 92, 123, 91

-- What a byte may be outside a string: 0 never, 1 part of a literal, 2 opens, 3 closes, 4 quote, 5 space, 6 comma or colon.
local CLASS = ffi.new("uint8_t[256]")
do
    local groups = {
        { 1, "0123456789+-.eEtrufalsn" }, { 2, "{[" }, { 3, "}]" }, { 4, '"' }, { 5, " \t\r\n" }, { 6, ",:" },
    }
    for _, group in ipairs(groups) do
        for i = 1, #group[2] do
            CLASS[byte(group[2], i)] = group[1]
        end
    end
end

local M = { MAX_DEPTH = MAX_DEPTH, CLASS = CLASS }

local function is_continuation(c)
    return band(c, 0xC0) == 0x80
end

--- The offset of the first byte that does not begin a character of UTF-8 (Unicode 15, table 3-7), or nil. 32 bytes at a time
-- while they are ASCII; the cases are written out for LuaJIT, which does badly with short loops inside a loop.
function M.bad_utf8(p, n)
    local i = 0
    while i < n do
        local stop = i + 32
        if stop <= n then
            local w = ffi.cast(words_t, p + i)
            if band(bor(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]), HIGH_BITS) == 0 then
                i = stop
            end
        else
            stop = n
        end
        while i < stop do
            local c = p[i]
            if c < 0x80 then
                i = i + 1
            elseif c < 0xE0 then
                if c < 0xC2 or i + 2 > n or not is_continuation(p[i + 1]) then
                    return i
                end
                i = i + 2
            elseif c < 0xF0 then
                if i + 3 > n or not (is_continuation(p[i + 1]) and is_continuation(p[i + 2]))
                    or c == 0xE0 and p[i + 1] < 0xA0 or c == 0xED and p[i + 1] > 0x9F
                then
                    return i
                end
                i = i + 3
            else
                if c > 0xF4 or i + 4 > n
                    or not (is_continuation(p[i + 1]) and is_continuation(p[i + 2]) and is_continuation(p[i + 3]))
                    or c == 0xF0 and p[i + 1] < 0x90 or c == 0xF4 and p[i + 1] > 0x8F
                then
                    return i
                end
                i = i + 4
            end
        end
    end
    return nil
end

--- First offset at or after i that is not white space.
function M.skip_space(p, i, n)
    while i < n and CLASS[p[i]] == 5 do
        i = i + 1
    end
    return i
end

--- The same, of a string with a backslash before a quote.
local function closing_quote_after(p, i, n)
    local first = i
    while i < n do
        local hit = C.memchr(p + i, QUOTE, n - i)
        if hit == nil then
            return nil
        end
        local at = tonumber(ffi.cast(bytes_t, hit) - p)
        local back = at - 1
        while back >= first and p[back] == BACKSLASH do
            back = back - 1
        end
        if (at - 1 - back) % 2 == 0 then
            return at
        end
        i = at + 1
        first = i
    end
    return nil
end

--- i is just after the opening quote; returns the offset of the closing one, or nil. Most strings need no loop, at which LuaJIT
-- gives up on a function (see exchange.lua).
local function closing_quote(p, i, n)
    local hit = i < n and C.memchr(p + i, QUOTE, n - i) or nil
    if hit == nil then
        return nil
    end
    local at = tonumber(ffi.cast(bytes_t, hit) - p)
    if p[at - 1] ~= BACKSLASH then
        return at
    end
    return closing_quote_after(p, i, n)
end
M.closing_quote = closing_quote

local stack = ffi.new("uint8_t[?]", MAX_DEPTH + 1)

--- i is at an opening bracket; returns the offset after its partner, or nil and what is wrong.
local function skip_container(p, i, n)
    local depth = 0
    while i < n do
        local c = p[i]
        local class = CLASS[c]
        if class == 4 then
            i = closing_quote(p, i + 1, n)
            if not i then
                return nil, "a string is not closed"
            end
        elseif class == 2 then
            depth = depth + 1
            if depth >= MAX_DEPTH then
                return nil, "nested more than " .. MAX_DEPTH .. " levels deep"
            end
            stack[depth] = c
        elseif class == 3 then
            if stack[depth] ~= c - 2 then -- '{' and '}', '[' and ']' are two apart
                return nil, "brackets do not match"
            end
            depth = depth - 1
            if depth == 0 then
                return i + 1
            end
        elseif class == 0 then
            return nil, "unexpected character at byte " .. (i + 1)
        end
        i = i + 1
    end
    return nil, "a bracket is not closed"
end

--- Is the literal number, true, false or null?
local function literal_kind(text)
    if text == "true" or text == "false" then
        return "boolean"
    elseif text == "null" then
        return "null"
    elseif find(text, "^%-?%d+%.?%d*[eE]?[+-]?%d*$") and tonumber(text) then
        return "number"
    end
    return nil
end

--- Skip one value. Returns the offset after it and its kind, or nil and what is wrong.
function M.skip_value(p, i, n, body)
    local c = p[i]
    if c == QUOTE then
        local close = closing_quote(p, i + 1, n)
        if not close then
            return nil, "a string is not closed"
        end
        return close + 1, "string"
    elseif c == OPEN_OBJECT or c == OPEN_ARRAY then
        local after, err = skip_container(p, i, n)
        if not after then
            return nil, err
        end
        return after, c == OPEN_OBJECT and "object" or "array"
    end
    local first = i
    while i < n and CLASS[p[i]] == 1 and i - first < 400 do
        i = i + 1
    end
    local kind = literal_kind(sub(body, first + 1, i))
    if not kind then
        return nil, "a value is expected at byte " .. (first + 1)
    end
    return i, kind
end

return M
