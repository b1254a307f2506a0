-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- How fast a peer answers against the others that serve the same models; how long it takes to read a prompt, and a slot to
-- become free.
--
-- Only like is compared with like, so that a peer that gets the long prompts, or few requests whose beginning it already knows,
-- isn't slow for that. A sample's group says what it is, and of which model:
--   first   seconds to a stream's first byte, by size of the prompt that the engine had to read (powers of two)
--   token   seconds per token after that
--   whole   seconds to an answer that isn't streamed, by size of the prompt and of the answer
-- Each worker adds up in its own table and merges that into the peer's record in the shared dict twice a second (of two that
-- merge at the same moment one loses its part). A record is an average whose weights fade with age, by 1/e in FADE seconds: at a
-- steady rate it weighs as many samples as came in FADE seconds.
--
-- A record: {at = seconds, span = seconds that its weights come from, groups = {group = sums}}.
--
-- merge(), means(), judge(), held() and reading() are pure.

local cjson = require "cjson.safe"

local find, match = string.find, string.match

local M = {}

local DICT = "llm_state"
local FLUSH = 0.5            -- seconds
local FADE = 30              -- seconds
local ENOUGH = 4.5           -- samples, of a peer and of each one it is compared with: 5 that have faded a little
local FORGOTTEN = 0.2        -- samples: a group that faded to this is dropped
local LEAST_LOSS = 0.05      -- seconds per answer: who loses less isn't slow, whatever the ratio
local NOISE = 2              -- standard errors that the loss must exceed
local LEAST_EXTRA = 0.1      -- seconds
local LOG2 = math.log(2)

local batch = {}             -- peer id → group → {samples, sum, sum of squares, sum of weights} since the last flush
local flush_at = 0

local function class(n)
    return n and n >= 1 and math.floor(math.log(n) / LOG2) or "?"
end

local function put(of_peer, group, value, weight)
    local sums = of_peer[group]
    if sums then
        sums[1], sums[2], sums[3], sums[4] = sums[1] + 1, sums[2] + value, sums[3] + value * value, sums[4] + weight
    else
        of_peer[group] = { 1, value, value * value, weight }
    end
end

--- Take note of one answer. Cheap: no shared memory.
-- @param id the peer's
-- @param model string
-- @param size bytes of the prompt that the engine had to read, or nil
-- @param first seconds to the first byte
-- @param tokens number or nil
-- @param decode seconds from the first byte to the last of a stream; nil: the answer was not streamed
function M.add(id, model, size, first, tokens, decode)
    local of_peer = batch[id]
    if not of_peer then
        of_peer = {}
        batch[id] = of_peer
    end
    if decode then
        put(of_peer, "first\t" .. model .. "\t" .. class(size), first, 1)
        if tokens and tokens > 1 and decode > 0 then
            put(of_peer, "token\t" .. model, decode / tokens, tokens)
        end
    else
        put(of_peer, "whole\t" .. model .. "\t" .. class(size) .. "\t" .. class(tokens), first, 1)
    end
end

--- Fade a record and add a batch to it.
-- @param record or nil
-- @param added {group = sums}
-- @return record
function M.merge(record, added, now)
    local groups, fade = {}, record and math.exp(-math.max(0, now - record.at) / FADE) or 0
    local span = record and record.span * fade + FADE * (1 - fade) or FLUSH
    for group, sums in pairs(record and record.groups or {}) do
        if sums[1] * fade > FORGOTTEN then
            groups[group] = { sums[1] * fade, sums[2] * fade, sums[3] * fade, sums[4] * fade }
        end
    end
    for group, sums in pairs(added) do
        local old = groups[group]
        if old then
            for i = 1, 4 do
                old[i] = old[i] + sums[i]
            end
        else
            groups[group] = { sums[1], sums[2], sums[3], sums[4] }
        end
    end
    return { at = now, span = span, groups = groups }
end

--- What peers need on average, by group, of those with enough samples.
-- @param records list of records that have faded to the same moment (merge() with nothing)
-- @return {group = ascending list of seconds}
function M.means(records)
    local out = {}
    for _, record in ipairs(records) do
        for group, sums in pairs(record.groups) do
            if sums[1] >= ENOUGH then
                out[group] = out[group] or {}
                table.insert(out[group], sums[2] / sums[1])
            end
        end
    end
    for _, list in pairs(out) do
        table.sort(list)
    end
    return out
end

--- The median of a sorted list that holds `own`, without that; nil if nothing is left.
local function median_without(list, own)
    local n, at = #list - 1, 1
    if n == 0 then
        return nil
    end
    while list[at] < own do
        at = at + 1
    end
    local low, high = math.floor((n + 1) / 2), math.ceil((n + 1) / 2)
    return (list[low < at and low or low + 1] + list[high < at and high or high + 1]) / 2
end

--- Compare a peer's record with the others'.
-- @param record of the peer
-- @param means from means(), of all records with this one
-- @return pace (1: as fast as the others; 0.2: it needs five times as long) and extra (seconds that it loses until the first
--   byte, 0 unless pace is below 1); or nil if there is too little to say anything
function M.judge(record, means)
    local kinds = {}
    for group, sums in pairs(record.groups) do
        local theirs = sums[1] >= ENOUGH and median_without(means[group], sums[2] / sums[1])
        if theirs then
            local name = group:match("^%a+")
            local kind = kinds[name] or { answers = 0, needed = 0, theirs = 0, variance = 0 }
            kinds[name] = kind
            local n, weight = sums[1], sums[4] / sums[1]
            local mean = sums[2] / n
            kind.answers = kind.answers + n
            kind.needed = kind.needed + n * weight * mean
            kind.theirs = kind.theirs + n * weight * theirs
            kind.variance = kind.variance + n * weight * weight * math.max(0, sums[3] / n - mean * mean)
        end
    end
    if not next(kinds) then
        return nil
    end
    local pace, losses = 1, {}
    for name, kind in pairs(kinds) do
        local loss = (kind.needed - kind.theirs) / kind.answers
        losses[name] = loss
        if loss > LEAST_LOSS and loss > NOISE * math.sqrt(kind.variance) / kind.answers then
            pace = math.min(pace, kind.theirs / kind.needed)
        end
    end
    return pace, pace < 1 and math.max(LEAST_EXTRA, losses.first or losses.whole or losses.token) or 0
end

--- How long an answer of the peer holds its slot, and how many there are.
-- @return seconds, on average, and answers per second; nil if too little is known
function M.held(record)
    local answers, seconds = 0, 0
    for group, sums in pairs(record.groups) do
        if find(group, "token", 1, true) == 1 then
            seconds = seconds + sums[2] / sums[1] * sums[4]
        else
            answers, seconds = answers + sums[1], seconds + sums[2]
        end
    end
    if answers >= ENOUGH then
        local held = seconds / answers
        return held, answers / math.max(record.span, held) -- the first ones began one answer's time before
    end
end

--- Samples of like answers: {n, x = Σ size, y = Σ seconds, xx, xy, yy}.
local function add_like(like, size, sums)
    local n = sums[1]
    like.n, like.x, like.y = like.n + n, like.x + n * size, like.y + sums[2]
    like.xx, like.xy, like.yy = like.xx + n * size * size, like.xy + size * sums[2], like.yy + sums[3]
end

--- Seconds that an engine takes to read a byte of a prompt: how much later the first byte comes when the prompt is longer (least
-- squares over the classes of size, among answers of the same kind and length).
-- @param records list of records that have faded to the same moment
-- @return {model = seconds}, without those where that is not beyond doubt
function M.reading(records)
    local likes, models, out = {}, {}, {}
    for _, record in ipairs(records) do
        for group, sums in pairs(record.groups) do
            local kind, model, size, tokens = match(group, "^(%a+)\t([^\t]*)\t(%d+)\t?(.*)$")
            if kind then
                local name = kind .. "\t" .. model .. "\t" .. tokens
                likes[name] = likes[name] or { model = model, n = 0, x = 0, y = 0, xx = 0, xy = 0, yy = 0 }
                add_like(likes[name], 1.5 * 2 ^ size, sums)
            end
        end
    end
    for _, like in pairs(likes) do
        local sum = models[like.model] or { free = -1, xx = 0, xy = 0, yy = 0 }
        models[like.model] = sum
        sum.free = sum.free + like.n - 1
        sum.xx = sum.xx + like.xx - like.x * like.x / like.n
        sum.xy = sum.xy + like.xy - like.x * like.y / like.n
        sum.yy = sum.yy + like.yy - like.y * like.y / like.n
    end
    for model, sum in pairs(models) do
        local slope = sum.xx > 0 and sum.xy / sum.xx or 0
        local doubt = slope > 0 and math.sqrt(math.max(0, sum.yy - slope * sum.xy) / math.max(1, sum.free) / sum.xx) or 0
        if sum.free >= ENOUGH and slope > NOISE * doubt then
            out[model] = slope
        end
    end
    return out
end

--- Hand over what this worker has noted, if it is time.
function M.flush()
    local now = ngx.now()
    if now < flush_at or not next(batch) then
        return
    end
    flush_at = now + FLUSH
    local d, added = ngx.shared[DICT], batch
    batch = {}
    for id, of_peer in pairs(added) do
        local key = "speed:" .. id
        local text = d:get(key)
        d:set(key, cjson.encode(M.merge(text and cjson.decode(text), of_peer, now)), 4 * FADE)
    end
end

--- What was measured at a peer counts no more: it was out.
function M.forget(id)
    batch[id] = nil
    ngx.shared[DICT]:delete("speed:" .. id)
end

--- Judge every peer that something was measured at.
-- @param view from peers.view()
-- @return list of {peer, pace, extra}; list of {peer, held = seconds, rate = answers per second}; and {model = seconds to read a
--   byte}
function M.judge_all(view)
    local d, now, out, holding = ngx.shared[DICT], ngx.now(), {}, {}
    local measured, records = {}, {}
    for _, peer in ipairs(view.peers) do
        local text = d:get("speed:" .. peer.id)
        if text then
            measured[#measured + 1] = peer
            records[#records + 1] = M.merge(cjson.decode(text), {}, now)
        end
    end
    local means = M.means(records)
    for i, peer in ipairs(measured) do
        local pace, extra = M.judge(records[i], means)
        if pace then
            out[#out + 1] = { peer = peer, pace = pace, extra = extra }
        end
        local held, rate = M.held(records[i])
        if held then
            holding[#holding + 1] = { peer = peer, held = held, rate = rate }
        end
    end
    return out, holding, M.reading(records)
end

return M
