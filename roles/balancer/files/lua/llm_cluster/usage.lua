-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- How many tokens an answer took, as the engine itself reports it. Pure.
--
-- A search in the text, nothing is decoded. A model's words cannot forge a report: inside a JSON string every quote has a
-- backslash before it, so `"usage"` stands only where a field is. Of several the last one counts: engines write it after what the
-- model said, which may be JSON too (a tool call's arguments).

local find, match, sub = string.find, string.match, string.sub

local M = {}

local WHOLE = 65536   -- bytes: up to here the text is searched whole, else only its ends (embeddings report before their numbers)
local HEAD = 4096
local TAIL = 16384
local TRIES = 8       -- places that are looked at closely: a pattern may read on to the text's end at each
local MOST = 1e8      -- tokens: more is nonsense that would spoil the sums

--- The last place where `word` (with its quotes) is followed by what `pattern` captures, among its last ones.
-- @return capture or nil
local function last(text, word, pattern)
    local ends, n = {}, 0
    local _, e = find(text, word, 1, true)
    while e do
        n = n + 1
        ends[n % TRIES] = e
        _, e = find(text, word, e + 1, true)
    end
    for i = n, math.max(1, n - TRIES + 1), -1 do
        local found = match(text, pattern, ends[i % TRIES] + 1)
        if found then
            return found
        end
    end
    return nil
end

--- The number that follows a word (with its quotes).
local function number(text, word)
    local _, e = find(text, word, 1, true)
    local value = e and tonumber(match(text, "^%s*:%s*(%d+)", e + 1))
    return value and value <= MOST and value or nil
end

--- OpenAI's chat and completions, Responses, Anthropic's messages: an object `usage`.
local function of_usage(text)
    local object = last(text, '"usage"', "^%s*:%s*(%b{})")
    if not object then
        return nil
    end
    local prompt = number(object, '"prompt_tokens"') or number(object, '"input_tokens"')
    local cached = number(object, '"cached_tokens"')
    local read = number(object, '"cache_read_input_tokens"')
    local written = number(object, '"cache_creation_input_tokens"')
    if prompt and (read or written) then -- Anthropic's input_tokens are those that no cache gave or took
        prompt = prompt + (read or 0) + (written or 0)
    end
    local completion = number(object, '"completion_tokens"') or number(object, '"output_tokens"')
    if not prompt and not completion then
        return nil
    end
    return { prompt = prompt, completion = completion, cached = cached or read }
end

--- llama.cpp's `timings`: at the end of its streams also when no usage was asked for.
local function of_timings(text)
    local object = last(text, '"timings"', "^%s*:%s*(%b{})")
    local new = object and number(object, '"prompt_n"')
    if not new then
        return nil
    end
    local cached = number(object, '"cache_n"')
    return { prompt = new + (cached or 0), completion = number(object, '"predicted_n"'), cached = cached }
end

--- Ollama's own API.
local function of_ollama(text)
    local prompt = tonumber(last(text, '"prompt_eval_count"', "^%s*:%s*(%d+)"))
    local completion = tonumber(last(text, '"eval_count"', "^%s*:%s*(%d+)"))
    if prompt and prompt > MOST or completion and completion > MOST or not (prompt or completion) then
        return nil
    end
    return { prompt = prompt, completion = completion }
end

local function search(text)
    return of_usage(text) or of_timings(text) or of_ollama(text)
end

--- Find what an answer reports.
-- @param text a whole answer, or the last events of a stream (8 kB are plenty)
-- @param earlier what find() returned for the stream's first events, or nil: Anthropic's API reports the prompt there only
-- @return {prompt, completion, cached} in tokens, each nil where nothing is said; nil if nothing is said at all
function M.find(text, earlier)
    local found
    if #text <= WHOLE then
        found = search(text)
    else
        found = search(sub(text, -TAIL)) or search(sub(text, 1, HEAD))
    end
    if not found or not earlier then
        return found or earlier
    end
    return {
        prompt = found.prompt or earlier.prompt, completion = found.completion or earlier.completion,
        cached = found.cached or earlier.cached,
    }
end

return M
