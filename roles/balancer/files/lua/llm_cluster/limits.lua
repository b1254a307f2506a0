-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- What a key may do: requests per minute, requests at a time, models.
--
-- Requests per minute: a sliding window over counters, as Cloudflare and Kong limit with
-- (blog.cloudflare.com/counting-things-a-lot-of-different-things), here with twelve counters of five seconds rather than two of a
-- minute. The counter that is just leaving the window counts by the share of it that is still inside, rounded down: what goes
-- through in a minute is off by at most what came within five seconds, and a client that keeps to its rate is never refused. No
-- lock is needed, as adding one is atomic over all workers. Refused requests don't count: knocking on locks nobody out.
--
-- Requests at a time: counted under the pid of the worker that serves them, waiting ones too (workers.lua).

local errors = require "llm_cluster.errors"
local names = require "llm_cluster.names"
local workers = require "llm_cluster.workers"

local floor = math.floor
local places = workers.counts_of("k")

local M = {}

local DICT = "llm_slots"
local SPAN = 5               -- seconds that one counter counts
local COUNTERS = 60 / SPAN   -- counters that fill the window; one more is leaving it
local RING = COUNTERS + 2    -- counters by name; the one too many is long expired when its name is used again
local TRIES = 5              -- to get the last place when workers take it at the same moment
local AGAIN = 1              -- seconds after which a client may try again for a place

local counts = {}            -- of the window's counters, oldest first; valid until the next yield
local ring_names = {}        -- key name → names of its counters
local patterns = setmetatable({}, { __mode = "k" }) -- key entry → its models, compiled
for i = 1, COUNTERS + 1 do
    counts[i] = 0
end

local function dict()
    return ngx.shared[DICT]
end

-- Requests per minute

local function ring_of(name)
    local ring = ring_names[name]
    if not ring then
        ring = {}
        for i = 0, RING - 1 do
            ring[i] = "rpm:" .. i .. ":" .. name
        end
        ring_names[name] = ring
    end
    return ring
end

--- Add one to a counter. Never evicts, unlike incr() with an initial value.
-- @return the new count; or nil and the dict's error
local function count_up(d, name, ttl)
    local count, err = d:incr(name, 1)
    if count or err ~= "not found" then
        return count, err
    end
    local added
    added, err = d:safe_add(name, 1, ttl)
    if added then
        return 1
    elseif err == "exists" then
        return d:incr(name, 1)
    end
    return nil, err
end

--- How many of the oldest counter's requests have left the window: its share that is outside, rounded up, and at once one.
local function left_of_oldest(now)
    local outside = now / SPAN % 1 + 1e-6 -- the division isn't exact
    return math.min(counts[1], floor(counts[1] * outside) + 1)
end

--- Read the window up to now into `counts`.
-- @return requests in it
local function read_window(d, ring, now)
    local current = floor(now / SPAN)
    local used = 0
    for i = 1, COUNTERS + 1 do
        counts[i] = d:get(ring[(current - COUNTERS - 1 + i) % RING]) or 0
        used = used + counts[i]
    end
    return used - left_of_oldest(now)
end

--- Seconds until so many of the requests in `counts` have left the window.
local function seconds_until(left, now)
    local current = floor(now / SPAN)
    left = left + left_of_oldest(now)
    for i = 1, COUNTERS + 1 do
        local count = counts[i]
        if count >= left and count > 0 then
            return math.max(0, (current - 1 + i) * SPAN + SPAN * (left - 1) / count - now) + 0.001
        end
        left = left - count
    end
    return 60
end

--- Seconds as OpenAI writes them: 17s, 1m2s.
local function duration(seconds)
    seconds = math.ceil(seconds)
    if seconds < 60 then
        return seconds .. "s"
    end
    return floor(seconds / 60) .. "m" .. seconds % 60 .. "s"
end

--- Count the request.
-- @return true; or nil and the seconds until it would be let in
local function count(key)
    local d, now = dict(), ngx.now()
    local ring, most = ring_of(key.name), key.requests_per_minute
    local current = floor(now / SPAN)
    local name = ring[current % RING]
    local counted, err = count_up(d, name, (current + COUNTERS + 1) * SPAN - now)
    if not counted then
        ngx.log(ngx.ERR, "key ", key.name, " is not limited: ", err) -- a full dict must not stop all
    end
    local used = read_window(d, ring, now)
    local wait
    if counted and used > most then
        d:incr(name, -1)
        used = used - 1
        counts[COUNTERS + 1] = math.max(0, counts[COUNTERS + 1] - 1)
        wait = seconds_until(used - most + 1, now)
    end
    local header = ngx.header
    header["x-ratelimit-limit-requests"] = most
    header["x-ratelimit-remaining-requests"] = math.max(0, most - used)
    header["x-ratelimit-reset-requests"] = duration(used > 0 and seconds_until(used, now) or 0)
    if wait then
        return nil, wait
    end
    return true
end

-- Requests at a time

--- Take one of the key's places: count first and sum after, so that two workers never overcommit.
-- @return true, or false if none is free
local function take_place(key, ctx)
    local d = dict()
    local place, most = places.name(workers.pid, key.name), key.concurrent
    local header = ngx.header
    header["x-ratelimit-limit-concurrent"] = most
    for _ = 1, TRIES do
        local taken, err = count_up(d, place)
        if not taken then
            ngx.log(ngx.ERR, "key ", key.name, " is not limited: ", err)
            return true
        end
        local sum = places.sum(d, key.name)
        if sum <= most then
            ctx.place = place
            header["x-ratelimit-remaining-concurrent"] = most - sum
            return true
        end
        d:incr(place, -1)
        if places.sum(d, key.name) >= most then
            break
        end
    end
    header["x-ratelimit-remaining-concurrent"] = 0
    return false
end

-- For proxy.lua and the lists

local function exceeded(key, what, seconds)
    return errors.new(429, "rate_limit_exceeded", "The limit of key '" .. key.name .. "' is " .. what .. ". Try again in "
        .. math.ceil(seconds) .. " s.", { retry_after = seconds })
end

--- Let a request in, or refuse it. Sets the x-ratelimit-* headers of its answer, as OpenAI names them, if the key has a limit.
-- @param key entry of the routing table, or nil
-- @param ctx table of the request; leave() takes what is noted in it
-- @return true, or nil and an error
function M.enter(key, ctx)
    if not key then
        return true
    end
    if key.concurrent and not take_place(key, ctx) then
        return nil, exceeded(key, key.concurrent .. (key.concurrent == 1 and " request" or " requests") .. " at a time", AGAIN)
    end
    if key.requests_per_minute then
        local ok, wait = count(key)
        if not ok then
            M.leave(ctx)
            return nil, exceeded(key, key.requests_per_minute .. " requests per minute", wait)
        end
    end
    return true
end

--- The request is over. More than once does no harm.
function M.leave(ctx)
    if ctx.place then
        dict():incr(ctx.place, -1)
        ctx.place = nil
    end
end

--- May a key use a model?
-- @param key entry of the routing table, or nil
-- @param model string, as the client asked or as the table has it: `:latest` is the same as none
function M.may_use(key, model)
    if not key or not key.models then
        return true
    end
    local compiled = patterns[key]
    if not compiled then
        compiled = names.compile(key.models)
        patterns[key] = compiled
    end
    return names.matches_model(compiled, model)
end

--- As may_use(), for a request.
-- @return true, or nil and an error that names what the key may use
function M.allows(key, model)
    if M.may_use(key, model) then
        return true
    end
    return nil, errors.new(403, "model_not_allowed", "Key '" .. key.name .. "' may not use model '" .. model .. "'. It may use: "
        .. table.concat(key.models, ", ") .. ".", { param = "model", should_retry = false })
end

--- How much of their limits keys use, for GET /state.
-- @param keys of the routing table
-- @return list of {name, requests_per_minute, requests = in the last minute, concurrent, at_work}; only limits are counted
function M.state(keys)
    local d, now, out = dict(), ngx.now(), {}
    for i, key in ipairs(keys) do
        out[i] = {
            name = key.name, requests_per_minute = key.requests_per_minute, concurrent = key.concurrent,
            requests = key.requests_per_minute and read_window(d, ring_of(key.name), now),
            at_work = key.concurrent and places.sum(d, key.name),
        }
    end
    return out
end

return M
