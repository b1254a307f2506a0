-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Client keys: SHA-256 of what is presented, compared in constant time with what the table holds.

local ffi = require "ffi"
local bit = require "bit"

ffi.cdef [[
unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md); /* libcrypto, which nginx is linked with */
]]

local bor, bxor = bit.bor, bit.bxor

local find, sub = string.find, string.sub

local M = {}

local MAX_KEY = 512
local WORDS = 8 -- a SHA-256 is eight words of 32 bits
local digest = ffi.new("unsigned char[32]")
local words = ffi.cast("uint32_t *", digest)

local indexed -- the list of keys that `index` was made of
local index   -- their hashes in binary, one after the other

local function index_of(keys)
    if keys == indexed then
        return index
    end
    local bytes = ffi.new("unsigned char[?]", #keys * 32)
    for i, key in ipairs(keys) do
        for j = 0, 31 do
            bytes[(i - 1) * 32 + j] = tonumber(key.sha256:sub(2 * j + 1, 2 * j + 2), 16)
        end
    end
    indexed, index = keys, { bytes = bytes, words = ffi.cast("uint32_t *", bytes) } -- bytes must outlive the cast
    return index
end

--- The key that a request presents.
-- @param authorization header value or nil
-- @param x_api_key header value or nil
-- @return string or nil
function M.presented(authorization, x_api_key)
    if authorization then
        if sub(authorization, 1, 7) == "Bearer " and not find(authorization, " ", 8, true) then
            return sub(authorization, 8)
        end
        local scheme, token = authorization:match("^(%a+) +(%S+) *$")
        if scheme and scheme:lower() == "bearer" then
            return token
        end
        return nil
    end
    return x_api_key
end

--- Whose key is it? All keys are compared, and all of each, whatever is found: the time says nothing.
-- @param view of the routing table
-- @param presented string or nil
-- @return the table's entry {name, sha256, requests_per_minute, concurrent, models}, or nil
function M.find(view, presented)
    if not presented or presented == "" or #presented > MAX_KEY then
        return nil
    end
    local keys = view.table.keys
    local known = index_of(keys).words
    ffi.C.SHA256(presented, #presented, digest)
    local found
    for i = 0, #keys - 1 do
        local diff = 0
        for j = 0, WORDS - 1 do
            diff = bor(diff, bxor(words[j], known[i * WORDS + j]))
        end
        if diff == 0 then
            found = i + 1
        end
    end
    return keys[found]
end

return M
