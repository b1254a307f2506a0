-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Client keys: SHA-256 of what is presented, compared in constant time with what the table holds.

local ffi = require "ffi"
local bit = require "bit"

ffi.cdef [[
unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md); /* libcrypto, which nginx is linked with */
]]

local M = {}

local MAX_KEY = 512
local digest = ffi.new("unsigned char[32]")
local HEX = {}
for i = 0, 255 do
    HEX[i] = string.format("%02x", i)
end

local function sha256_hex(text)
    ffi.C.SHA256(text, #text, digest)
    local out = {}
    for i = 0, 31 do
        out[i + 1] = HEX[digest[i]]
    end
    return table.concat(out)
end
M.sha256_hex = sha256_hex

--- Are two strings of one length equal? Takes the same time wherever they differ.
local function equal(a, b)
    if #a ~= #b then
        return false
    end
    local diff = 0
    for i = 1, #a do
        diff = bit.bor(diff, bit.bxor(a:byte(i), b:byte(i)))
    end
    return diff == 0
end
M.equal = equal

--- The key that a request presents.
-- @param authorization header value or nil
-- @param x_api_key header value or nil
-- @return string or nil
function M.presented(authorization, x_api_key)
    if authorization then
        local scheme, token = authorization:match("^(%a+) +(%S+) *$")
        if scheme and scheme:lower() == "bearer" then
            return token
        end
        return nil
    end
    return x_api_key
end

--- Whose key is it?
-- @param keys list of {name, sha256}
-- @param presented string or nil
-- @return name or nil
function M.name_of(keys, presented)
    if not presented or presented == "" or #presented > MAX_KEY then
        return nil
    end
    local hash = sha256_hex(presented)
    local name
    for _, key in ipairs(keys) do
        if equal(hash, key.sha256) then
            name = key.name
        end
    end
    return name
end

return M
