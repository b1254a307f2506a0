-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The request body: byte ranges of its top-level keys, found without decoding it.
--
-- A 30 MB body of `[{},{}…]` stalls a worker for seconds in a JSON decoder, and re-encoding loses digits. So one pass over the
-- bytes finds where each top-level value lies; a rewrite splices bytes.
-- Pure: needs LuaJIT's FFI and cjson (for one short string with escapes), nothing of nginx.

local ffi = require "ffi"
local cjson = require "cjson.safe"

local scanner = require "llm_cluster.scanner"
local shape = require "llm_cluster.shape"

local find, lower, sub = string.find, string.lower, string.sub
local bad_utf8 = scanner.bad_utf8
local closing_quote, skip_space, skip_value = scanner.closing_quote, scanner.skip_space, scanner.skip_value

local bytes_t = ffi.typeof("const uint8_t *")

local MAX_KEYS = 256
local MAX_NAME = 256
local EXACT = { "model", "stream", "name", "keep_alive" } -- names that we act on

local QUOTE, OPEN_OBJECT, CLOSE_OBJECT, COMMA, COLON = 34, 123, 125, 44, 58

local M = { MAX_DEPTH = scanner.MAX_DEPTH, shape = shape.of }

--- Scan a JSON object.
-- @param body string
-- @return {key = {first, last, kind}}: Lua string positions (1-based, inclusive) of each top-level value, kind being string,
--   number, boolean, null, object or array; and the position of the opening brace, and whether the object is empty.
--   Or nil and what is wrong, in words for the client.
function M.scan(body)
    local n = #body
    local p = ffi.cast(bytes_t, body)
    local i = skip_space(p, 0, n)
    if i >= n then
        return nil, "the body is empty"
    end
    if p[i] ~= OPEN_OBJECT then
        return nil, "the body is not a JSON object"
    end
    local brace = i + 1
    local fields, seen, count = {}, {}, 0
    i = skip_space(p, i + 1, n)
    if i < n and p[i] == CLOSE_OBJECT then
        i = i + 1
    else
        while true do
            if i >= n or p[i] ~= QUOTE then
                return nil, "a key is expected at byte " .. (i + 1)
            end
            local close = closing_quote(p, i + 1, n)
            if not close then
                return nil, "a string is not closed"
            end
            local key = sub(body, i + 2, close)
            if #key > MAX_NAME then
                return nil, "a top-level key is too long"
            elseif find(key, "[^\32-\126]") or find(key, "\\", 1, true) then
                return nil, "a top-level key has an escape or a character that is not ASCII"
            end
            local folded = lower(key)
            if seen[folded] then
                return nil, "the top-level key '" .. key .. "' is given twice"
            end
            seen[folded] = true
            count = count + 1
            if count > MAX_KEYS then
                return nil, "more than " .. MAX_KEYS .. " top-level keys"
            end
            i = skip_space(p, close + 1, n)
            if i >= n or p[i] ~= COLON then
                return nil, "a colon is expected at byte " .. (i + 1)
            end
            i = skip_space(p, i + 1, n)
            if i >= n then
                return nil, "the body ends early"
            end
            local after, kind = skip_value(p, i, n, body)
            if not after then
                return nil, kind
            end
            fields[key] = { first = i + 1, last = after, kind = kind }
            i = skip_space(p, after, n)
            if i >= n then
                return nil, "the body ends early"
            end
            local c = p[i]
            i = i + 1
            if c == CLOSE_OBJECT then
                break
            elseif c ~= COMMA then
                return nil, "a comma or a closing brace is expected at byte " .. i
            end
            i = skip_space(p, i, n)
        end
    end
    if skip_space(p, i, n) < n then
        return nil, "something follows the JSON object at byte " .. (i + 1)
    end
    -- Go reads keys without regard to case, C++ does not: a name we act on must be spelt exactly.
    for at = 1, #EXACT do
        local name = EXACT[at]
        if seen[name] and not fields[name] then
            return nil, "the top-level key '" .. name .. "' must be written in lower case"
        end
    end
    return fields, brace, count == 0
end

--- The text of a string field. Returns nil and what is wrong if it is none.
local function string_value(body, field, key)
    if field.kind ~= "string" then
        return nil, "'" .. key .. "' must be a string"
    end
    if field.last - field.first > MAX_NAME then
        return nil, "'" .. key .. "' is too long"
    end
    local text = sub(body, field.first + 1, field.last - 1)
    if find(text, "[%c]") then
        return nil, "'" .. key .. "' has a control character"
    end
    if find(text, "\\", 1, true) then
        local decoded = cjson.decode('["' .. text .. '"]')
        if not decoded then
            return nil, "'" .. key .. "' has a bad escape"
        end
        text = decoded[1]
    end
    return text
end

--- Read what placing a request needs.
-- @param body string
-- @param opts {stream_default = boolean, name_key = string|nil: a second key that may hold the model}
-- @return {model = string|nil, stream = boolean, fields, brace, empty, body}, or nil, words, and the parameter at fault (or nil)
function M.parse(body, opts)
    local fields, brace, empty = M.scan(body)
    if not fields then
        return nil, "Malformed JSON: " .. brace .. "."
    end
    -- Engines disagree about bytes that are no text: some answer 500, some put in other characters.
    local bad = bad_utf8(ffi.cast(bytes_t, body), #body)
    if bad then
        return nil, "The body is not UTF-8 at byte " .. (bad + 1) .. "."
    end
    local request = { fields = fields, brace = brace, empty = empty, body = body, stream = opts.stream_default or false }
    local key = "model"
    local field = fields.model
    if not field and opts.name_key and fields[opts.name_key] then
        key = opts.name_key
        field = fields[key]
    end
    if field and field.kind ~= "null" then
        local text, err = string_value(body, field, key)
        if not text then
            return nil, err .. ".", key
        end
        if text ~= "" then
            request.model = text
        end
    end
    request.model_field = field
    local stream = fields.stream
    if stream and stream.kind ~= "null" then
        if stream.kind ~= "boolean" then
            return nil, "'stream' must be true or false.", "stream"
        end
        request.stream = sub(body, stream.first, stream.last) == "true"
    end
    return request
end

--- The text of an optional short string at the top level.
-- @return string; or nil if it is absent, empty, too long, no string or has control characters
function M.text(request, key)
    local field = request.fields[key]
    local text = field and string_value(request.body, field, key)
    return text ~= "" and text or nil
end

local function by_place(a, b)
    return a.first < b.first
end

--- The body with other text at some places.
-- @param edits list of {first, last, text}
-- @return list of strings
local function spliced(body, edits)
    table.sort(edits, by_place)
    local out, from = {}, 1
    for _, edit in ipairs(edits) do
        out[#out + 1] = sub(body, from, edit.first - 1)
        out[#out + 1] = edit.text
        from = edit.last + 1
    end
    out[#out + 1] = sub(body, from)
    return out
end

--- The body as it goes to a peer, as a list of strings to send one after the other.
--
-- `keep_alive` becomes null, which Ollama takes for absent: when a model leaves a node's memory is not for a client to say.
-- @param request what parse() gave
-- @param model string|nil: to be in it; nil leaves what is there
function M.pieces(request, model)
    local body, model_field, keep_alive = request.body, request.model_field, request.fields.keep_alive
    if not model and not keep_alive then
        return { body }
    end
    local text = model and cjson.encode(model):gsub("\\/", "/")
    local edits = {}
    if text and model_field then
        edits[1] = { first = model_field.first, last = model_field.last, text = text }
    elseif text then
        local comma = request.empty and "" or ","
        edits[1] = { first = request.brace + 1, last = request.brace, text = '"model":' .. text .. comma }
    end
    if keep_alive then
        edits[#edits + 1] = { first = keep_alive.first, last = keep_alive.last, text = "null" }
    end
    return spliced(body, edits)
end

return M
