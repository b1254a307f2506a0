-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- How large a request is: turns and characters of its prompt, counted over the bytes, without decoding them. Pure.
--
-- One pass over the values that hold the prompt. What is inside them was checked for closed strings and matching brackets only,
-- so this takes any order of tokens: on nonsense it counts something, in bounds and in linear time.

local ffi = require "ffi"
local bit = require "bit"

local scanner = require "llm_cluster.scanner"

local band, bnot, bor, lshift, rshift = bit.band, bit.bnot, bit.bor, bit.lshift, bit.rshift
local closing_quote, CLASS = scanner.closing_quote, scanner.CLASS

ffi.cdef [[
int memcmp(const void *a, const void *b, size_t n);
]]
local C = ffi.C
local bytes_t = ffi.typeof("const uint8_t *")
local words_t = ffi.typeof("const int32_t *")

local M = {}

local BACKSLASH, OPEN_OBJECT, OPEN_ARRAY, COMMA, LETTER_U, LETTER_D = 92, 123, 91, 44, 117, 100
-- Steps outside strings; a list of 400,000 tokens takes a million. Beyond that what was counted so far is said.
local MAX_STEPS = 1000000
local HOLDS_TEXT = { string = true, array = true, object = true }
local HIGH_BITS = bit.tobit(0x80808080)

--- Is a \uXXXX whose X start at i the first half of a pair?
local function is_high_surrogate(p, i)
    local second = bor(p[i + 1], 32)
    return bor(p[i], 32) == LETTER_D and (second == 56 or second == 57 or second == 97 or second == 98) -- 8 9 a b
end

--- A word's bytes that go on a character (10xxxxxx), as ones in its four bytes.
local function continuations(word)
    return rshift(band(word, HIGH_BITS, lshift(bnot(word), 1)), 7)
end

--- Characters of a string's bytes: code points, an escape counts as the one that it stands for.
local function characters(p, first, n)
    local count = n - first
    local i = first
    while i + 8 <= n do
        local words = ffi.cast(words_t, p + i)
        local a, b = words[0], words[1]
        if band(bor(a, b), HIGH_BITS) ~= 0 then
            local sums = continuations(a) + continuations(b)
            sums = sums + rshift(sums, 16)
            count = count - band(sums + rshift(sums, 8), 15)
        end
        i = i + 8
    end
    while i < n do
        if band(p[i], 0xC0) == 0x80 then
            count = count - 1
        end
        i = i + 1
    end
    i = first
    while i < n do
        local hit = C.memchr(p + i, BACKSLASH, n - i)
        if hit == nil then
            break
        end
        i = tonumber(ffi.cast(bytes_t, hit) - p)
        if i + 6 <= n and p[i + 1] == LETTER_U then
            count = count - 5
            if i + 12 <= n and p[i + 6] == BACKSLASH and p[i + 7] == LETTER_U and is_high_surrogate(p, i + 2) then
                count = count - 6
                i = i + 6
            end
            i = i + 6
        else
            count = count - 1
            i = i + 2
        end
    end
    return count
end

--- Is it a key whose value is text for the model? `output` is what a tool gave back.
local function is_text_key(p, first, length)
    return length == 7 and C.memcmp(p + first, "content", 7) == 0
        or length == 4 and C.memcmp(p + first, "text", 4) == 0
        or length == 6 and C.memcmp(p + first, "output", 6) == 0
end

-- By depth: is it an object; may what it holds be text; is the value that comes next text.
local is_object = ffi.new("uint8_t[?]", scanner.MAX_DEPTH + 2)
local holds_text = ffi.new("uint8_t[?]", scanner.MAX_DEPTH + 2)
local is_text = ffi.new("uint8_t[?]", scanner.MAX_DEPTH + 2)

--- Walk one value that holds text: a string, a list of strings, of numbers (tokens) or of objects with text in them.
-- @return characters, and the number of objects in it if it is a list
local function walk(p, first, last)
    local count, objects, depth, i, key_next = 0, 0, 0, first, false
    is_object[0], holds_text[0], is_text[0] = 0, 1, 1
    for _ = 1, MAX_STEPS do
        if i >= last then
            break
        end
        local c = p[i]
        local class = CLASS[c]
        if class == 4 then
            local close = closing_quote(p, i + 1, last)
            if not close then
                break
            end
            if key_next then
                key_next = false
                is_text[depth] = holds_text[depth] == 1 and is_text_key(p, i + 1, close - i - 1) and 1 or 0
            elseif is_text[depth] == 1 then
                count = count + characters(p, i + 1, close)
            end
            i = close
        elseif class == 2 then
            if depth > scanner.MAX_DEPTH then
                break
            end
            if depth == 1 and c == OPEN_OBJECT then
                objects = objects + 1
            end
            local text = is_text[depth]
            depth = depth + 1
            key_next = c == OPEN_OBJECT
            is_object[depth] = key_next and 1 or 0
            holds_text[depth] = text
            is_text[depth] = c == OPEN_ARRAY and text or 0
        elseif class == 3 then
            depth = depth > 0 and depth - 1 or 0
            key_next = false
        elseif c == COMMA then
            key_next = is_object[depth] == 1
        elseif class == 1 and is_text[depth] == 1 and is_object[depth] == 0 then
            count = count + 1 -- a token's number
            while i + 1 < last and CLASS[p[i + 1]] == 1 do
                i = i + 1
            end
        end
        i = i + 1
    end
    return count, objects
end

--- Count what routes look at.
-- @param request what request.parse() gave
-- @return {messages = items of `messages` or `input`, or 1 for a bare prompt, prompt_chars = characters of all their text and of
--   `prompt`, `system` and `instructions`; a token given by its number counts as one}
function M.of(request)
    local p = ffi.cast(bytes_t, request.body)
    local fields = request.fields
    local chars, messages = 0, 0
    local function add(name)
        local field = fields[name]
        if not field or not HOLDS_TEXT[field.kind] then
            return false
        end
        local more, objects = walk(p, field.first - 1, field.last)
        chars = chars + more
        return true, field.kind == "array" and objects or 0
    end
    add("system")
    add("instructions")
    for _, name in ipairs { "messages", "input", "prompt" } do
        local there, objects = add(name)
        if there then
            messages = messages + math.max(objects, name == "messages" and 0 or 1)
        end
    end
    return { messages = messages, prompt_chars = chars }
end

return M
