-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Which peer holds the beginning of this request in its cache: the one that lately was sent the same beginning.
--
-- A conversation is cut into blocks, at each message's end and at each 1024 bytes inside one. A block's key is a checksum over
-- everything up to its end, the model first, so equal keys mean equal beginnings (chained block hashes, as in vLLM's prefix
-- caching). For each key the dict llm_prefix keeps who was sent it, in 4 bytes for each peer, newest first.
--
-- Not every match is worth a busier peer. A system prompt, tools, or a template is shared by very many conversations; ranking by
-- it would pull all of them to the peer that saw it first while others idle, and there they would drive each other out of its
-- cache. (SGLang's router weighs matches against load with fixed thresholds, which does not hold for nodes with few slots.) So a
-- match counts only if
--   - it goes beyond tools, system prompt and the system messages at the start, and
--   - the requests that end their match at that very block, as where many part ways after a template or a document, are not more
--     than one peer's share of all requests: what is asked for so seldom one peer can serve, and the caches of all hold more.
--     A short one counts only until many have ended there.
-- Otherwise load decides, and a common beginning is soon held by every peer.

local ffi = require "ffi"

local peers = require "llm_cluster.peers"
local request = require "llm_cluster.request"
local scanner = require "llm_cluster.scanner"

local byte, char, find, match, sub = string.byte, string.char, string.find, string.match, string.sub
local skip_space, skip_value = scanner.skip_space, scanner.skip_value

ffi.cdef [[
uint32_t llm_cluster_crc32(unsigned long crc, const uint8_t *buf, unsigned int len) __asm__("crc32");
]]
-- nginx itself needs zlib, so it is there. It is called through this variable: a library that nothing refers to is unloaded.
local zlib = ffi.load("libz.so.1")
local bytes_t = ffi.typeof("const uint8_t *")
local key_buffer = ffi.new("uint32_t[2]")
local number_buffer = ffi.new("uint32_t[1]")

local M = {}

local DICT = "llm_prefix"
local BLOCK = 1024
local MANY = 8             -- matches that end at one block: from then on they say something about their share
local MOST = 128           -- and here only half of them count on, so that what was long ago is forgotten
local HEAD = 5             -- bytes of a value before the peers: those matches, and the number of the request that came first
local LONG = 2048          -- bytes that are worth a busier peer, though many requests begin with them
local MAX_HOLDERS = 16     -- peers kept for one block
local MAX_SEARCHES = 3     -- different depths looked for
local MAX_PIN = 256        -- bytes
local SEED = 1             -- of the checksums: another one whenever values look otherwise, as the dict outlives an upgrade
local COMMA, OPEN_OBJECT, OPEN_ARRAY, QUOTE = 44, 123, 91, 34

-- Keys

local function new_keys(model, most)
    local crc = zlib.llm_cluster_crc32(SEED, model, #model)
    return { model = model, most = most, shared = 0, depths = {}, met = 0, crc = crc, bytes = 0 }
end

--- Add the blocks of one piece of text.
local function add(keys, p, first, last)
    local crc, total, count, most = keys.crc, keys.bytes, #keys, keys.most
    while first < last and count < most do
        local length = last - first
        if length > BLOCK then
            length = BLOCK
        end
        crc = zlib.llm_cluster_crc32(crc, p + first, length)
        total = total + length
        first = first + length
        count = count + 1
        key_buffer[0], key_buffer[1] = crc, total
        keys[count] = ffi.string(key_buffer, 8)
    end
    keys.crc, keys.bytes = crc, total
end

--- Is the message from the operator, not part of the conversation?
local function is_system(body, first, last)
    local at, to = find(body, '"role"', first + 1, true)
    if not at or to > last then
        return false
    end
    local role = match(body, "^%s*:%s*\"(%a+)\"", to + 1)
    return role == "system" or role == "developer"
end

--- Add the elements of a list, each of them a piece. Tokens given by their numbers are one piece.
local function add_list(keys, p, body, first, last)
    local i = skip_space(p, first + 1, last)
    local leading = keys.shared == #keys
    while i < last - 1 and #keys < keys.most do
        local c = p[i]
        if c == COMMA then
            i = skip_space(p, i + 1, last)
        else
            -- What lies beyond the last block needs no look, however long it is.
            local limit = math.min(last - 1, i + (keys.most - #keys) * BLOCK)
            local after = (c == OPEN_OBJECT or c == OPEN_ARRAY or c == QUOTE) and skip_value(p, i, limit, body) or limit
            add(keys, p, i, after)
            leading = leading and c == OPEN_OBJECT and is_system(body, i, after)
            if leading then
                keys.shared = #keys
            end
            i = skip_space(p, after, last)
        end
    end
end

local NO_REUSE = { ["/v1/embeddings"] = true, ["/v1/rerank"] = true, ["/api/embed"] = true, ["/api/embeddings"] = true }

--- The keys of a request's beginnings, from the shortest to the longest.
-- @param parsed what request.parse() gave
-- @param model a model's name as the table has it
-- @param most number of them; the blocks after those are not looked at: conversations that long share them all
-- @param path of the request: where nothing is generated nothing is kept; nil takes it for one that generates
-- @return list of short strings, empty if there is nothing to match; `shared`: how many are not of the conversation itself;
--   `model`
function M.keys(parsed, model, most, path)
    local keys = new_keys(model, math.floor(most))
    if NO_REUSE[path] then
        return keys
    end
    local fields, body = parsed.fields, parsed.body
    local p = ffi.cast(bytes_t, body)
    for _, name in ipairs { "tools", "system", "instructions" } do
        local field = fields[name]
        if field and field.kind ~= "null" then
            add(keys, p, field.first - 1, field.last)
        end
    end
    keys.shared = #keys
    for _, name in ipairs { "messages", "input", "prompt" } do
        local field = fields[name]
        if field and field.kind == "array" then
            add_list(keys, p, body, field.first - 1, field.last)
        elseif field and field.kind == "string" then
            add(keys, p, field.first, field.last - 1)
        end
    end
    return keys
end

--- What the client itself says belongs together.
-- @param parsed what request.parse() gave
-- @param session value of the header X-LLM-Session, or nil
-- @return text, or nil
function M.pin(parsed, session)
    if session and session ~= "" and #session <= MAX_PIN then
        return session
    end
    return request.text(parsed, "prompt_cache_key") or request.text(parsed, "user")
end

-- Holders

local tagged_view, by_tag

--- A peer's 4 bytes.
local function tag_of(peer)
    local tag = rawget(peer, "tag")
    if not tag then
        local buffer = ffi.new("uint32_t[1]", zlib.llm_cluster_crc32(0, peer.id, #peer.id))
        tag = ffi.string(buffer, 4)
        peer.tag = tag
    end
    return tag
end

local function ids_by_tag(view)
    if view ~= tagged_view then
        by_tag = {}
        for _, peer in ipairs(view.peers) do
            by_tag[tag_of(peer)] = peer.id
        end
        tagged_view = view
    end
    return by_tag
end

local function head_of(matches, first)
    number_buffer[0] = first % 0x100000000
    return char(matches) .. ffi.string(number_buffer, 4)
end

--- The number in four bytes of a text, the lowest first.
local function number_at(text, at)
    local a, b, c, d = byte(text, at, at + 3)
    return a + 0x100 * (b + 0x100 * (c + 0x100 * d))
end

--- @return how many matches ended at the block, among how many requests
local function matched(value, number)
    return byte(value), (number - number_at(value, 2)) % 0x100000000
end

--- The value with one match more.
local function count_match(value, number)
    local matches, among = matched(value, number)
    if matches >= MOST then
        matches, among = MOST / 2, math.floor(among / 2)
    end
    return head_of(matches + 1, number - among) .. sub(value, HEAD + 1)
end

--- Do many share this beginning, and is it short (its key ends with its bytes), or are they more than one peer's share of all?
local function is_common(value, keys, depth)
    local matches, among = matched(value, keys.number)
    return matches >= MANY and (matches * keys.peers > among or number_at(keys[depth], 5) < LONG)
end

local function pin_name(keys, pin)
    return "session " .. keys.model .. "\0" .. pin
end

--- The deepest block in (low, high] that anybody holds, and its value.
-- Who holds a block was sent all blocks before it, so what is known is a beginning. The last turn's end is near the request's
-- end: look there first, then halve.
local function deepest(dict, keys, low, high)
    local unknown, at, step, value = high + 1, high, 1, nil
    while at > low do
        value = dict:get(keys[at])
        if value then
            break
        end
        unknown = at
        at = at - step
        step = step * 2
    end
    if not value then
        at = low
    end
    while unknown - at > 1 do
        local middle = math.floor((at + unknown) / 2)
        local found = dict:get(keys[middle])
        if found then
            at, value = middle, found
        else
            unknown = middle
        end
    end
    return at, value
end

--- Is there a holder among these who is not known yet? With a depth, note them all.
local function newcomers(value, ids, depths, depth)
    local new = false
    for i = HEAD + 1, #value - 3, 4 do
        local id = ids[sub(value, i, i + 3)]
        if id and not depths[id] then
            new = true
            depths[id] = depth
        end
    end
    return new
end

--- The deepest block in (low, high] that somebody holds who is not known yet. @return its depth or nil, and the value
local function next_depth(dict, keys, low, high, ids, depths)
    local found, found_value
    while low < high do
        -- Going up, holders only join: if the first block has nobody new, none has.
        local middle = found and math.ceil((low + high) / 2) or low + 1
        local value = dict:get(keys[middle])
        if value and newcomers(value, ids, depths) then
            found, found_value, low = middle, value, middle
        elseif not found then
            return nil
        else
            high = middle - 1
        end
    end
    return found, found_value
end

--- Who holds how much of this request.
-- @param keys from keys(); it notes the depths for remember()
-- @param pin from pin(), or nil
-- @param view nil for the one in force
-- @param number of the request, of all that came
-- @return {peer.id = number of leading blocks that it holds; #keys + 1 for a pinned peer}, or nil if nobody holds more than what
--   many conversations share
function M.holders(keys, pin, view, number)
    local dict = ngx.shared[DICT]
    view = view or peers.view()
    local ids = ids_by_tag(view)
    local depths, count = {}, #keys
    local own
    local depth, value = 0, nil
    if count > 0 then
        depth, value = deepest(dict, keys, 0, count)
    end
    keys.depths, keys.met, keys.number, keys.peers = depths, depth, number, #view.peers
    for search = 1, MAX_SEARCHES do
        if not value then
            break
        end
        local is_own = depth > keys.shared and not is_common(value, keys, depth)
        if is_own or search == 1 then
            newcomers(value, ids, depths, depth)
        end
        if not is_own then
            break
        end
        own = depths
        depth, value = next_depth(dict, keys, keys.shared, depth - 1, ids, depths)
    end
    local pinned = pin and ids[dict:get(pin_name(keys, pin))]
    if pinned then
        local with = { [pinned] = count + 1 }
        for id, held in pairs(own or with) do
            with[id] = with[id] or held
        end
        own = with
    end
    return own and next(own) and own or nil
end

--- Is it about to be forgotten? Then it is not, nor what is before it.
-- Of a conversation the first block of its own is the oldest; those before are kept alive by all who share them.
-- @return false if it was forgotten already
local function refresh(dict, keys, held, ttl)
    local left = dict:ttl(keys[math.min(keys.shared + 1, held)])
    if not left then
        return false
    end
    if left < ttl / 2 then
        for i = 1, held do
            dict:expire(keys[i], ttl)
        end
    end
    return true
end

--- A peer was sent this request: from now on it holds it. Writes only what is new.
-- @param keys from keys(), seen by holders()
-- @param pin from pin(), or nil
-- @param peer
-- @param ttl seconds it is thought to hold it; 0 keeps nothing
function M.remember(keys, pin, peer, ttl)
    if ttl <= 0 then
        return
    end
    local dict, tag, count = ngx.shared[DICT], tag_of(peer), #keys
    if pin then
        dict:set(pin_name(keys, pin), tag, ttl)
    end
    local held, met = keys.depths[peer.id] or 0, keys.met
    if met > 0 then
        local value = dict:get(keys[met])
        if value then
            dict:set(keys[met], count_match(value, keys.number), ttl)
        end
    end
    if held > 0 and not refresh(dict, keys, held, ttl) then
        held, met = 0, count
    end
    for i = held + 1, count do
        local value = i <= met and dict:get(keys[i])
        if not value then
            dict:set(keys[i], head_of(0, keys.number) .. tag, ttl)
        elseif not find(value, tag, HEAD + 1, true) then
            dict:set(keys[i], sub(value, 1, HEAD) .. tag .. sub(value, HEAD + 1, HEAD + 4 * (MAX_HOLDERS - 1)), ttl)
        end
    end
end

return M
