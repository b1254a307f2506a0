-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local ffi = require "ffi"
ffi.load("libcrypto.so.3", true) -- in nginx it is linked

--- A shared dict as far as limits.lua uses one.
local function fake_dict(clock)
    local values, ends = {}, {}
    local d = { values = values }
    local function live(name)
        if ends[name] and ends[name] <= clock.now then
            values[name], ends[name] = nil, nil
        end
        return values[name]
    end
    function d.get(_, name)
        return live(name)
    end
    function d.incr(_, name, by)
        if not live(name) then
            return nil, "not found"
        end
        values[name] = values[name] + by
        return values[name]
    end
    function d.safe_add(_, name, value, ttl)
        if d.full then
            return nil, "no memory"
        elseif live(name) then
            return false, "exists"
        end
        values[name], ends[name] = value, ttl and clock.now + ttl
        return true
    end
    return d
end

describe("keys.find", function()
    local keys = require "llm_cluster.keys"
    -- echo -n … | sha256sum
    local entries = {
        { name = "abc", sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        { name = "hello", sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" },
    }
    local view = { table = { keys = entries } }

    it("finds the whole entry", function()
        assert.equal(entries[1], keys.find(view, "abc"))
        assert.equal(entries[2], keys.find(view, "hello"))
    end)

    it("finds nothing else", function()
        for _, presented in ipairs { "", "ab", "abcd", "ABC", "abc\0", entries[1].sha256, ("a"):rep(513) } do
            assert.is_nil(keys.find(view, presented))
        end
        assert.is_nil(keys.find(view, nil))
        assert.is_nil(keys.find({ table = { keys = {} } }, "abc"))
    end)

    it("goes with the table", function()
        local other = { table = { keys = { entries[2] } } }
        assert.equal(entries[1], keys.find(view, "abc"))
        assert.is_nil(keys.find(other, "abc"))
        assert.equal(entries[2], keys.find(other, "hello"))
        assert.equal(entries[1], keys.find(view, "abc"))
    end)

    it("compares every bit", function()
        local hash = entries[1].sha256
        for i = 1, 64 do
            local digit = ("%x"):format((tonumber(hash:sub(i, i), 16) + 1) % 16)
            local changed = { { name = "x", sha256 = hash:sub(1, i - 1) .. digit .. hash:sub(i + 1) } }
            assert.is_nil(keys.find({ table = { keys = changed } }, "abc"))
        end
    end)
end)

describe("limits", function()
    local clock, dict, limits, workers
    local real_ngx = _G.ngx

    --- From now on the first of these workers is this one.
    local function serve(...)
        local pids = { ... }
        for i, pid in ipairs(pids) do
            dict.values["worker:" .. i] = pid
        end
        dict.values["worker:" .. #pids + 1] = nil
        dict.values.version = (dict.values.version or 0) + 1
        workers.pid = pids[1]
    end

    before_each(function()
        clock = { now = 1000000000 }
        dict = fake_dict(clock)
        _G.ngx = {
            shared = { llm_slots = dict }, header = {}, now = function() return clock.now end,
            log = function() end, ERR = 3,
        }
        package.loaded["llm_cluster.workers"], package.loaded["llm_cluster.limits"] = nil, nil
        package.loaded["llm_cluster.proc"] = {}
        workers = require "llm_cluster.workers"
        serve(10)
        limits = require "llm_cluster.limits"
    end)

    after_each(function()
        _G.ngx = real_ngx
        package.loaded["llm_cluster.workers"], package.loaded["llm_cluster.limits"] = nil, nil
        package.loaded["llm_cluster.proc"] = nil
    end)

    local function key(fields)
        fields.name = fields.name or "k"
        return fields
    end

    it("let in who has none", function()
        assert.is_true(limits.enter(nil, {}))
        assert.is_true(limits.enter(key {}, {}))
        assert.same({}, _G.ngx.header)
        assert.is_nil(dict.values["10:k:k"])
    end)

    it("are said in the headers", function()
        local k = key { requests_per_minute = 3 }
        for left = 2, 0, -1 do
            assert.is_true(limits.enter(k, {}))
            assert.equal(3, _G.ngx.header["x-ratelimit-limit-requests"])
            assert.equal(left, _G.ngx.header["x-ratelimit-remaining-requests"])
            assert.matches("^1m%ds$", _G.ngx.header["x-ratelimit-reset-requests"])
        end
        local ok, err = limits.enter(k, {})
        assert.is_nil(ok)
        assert.equal(429, err.status)
        assert.equal("rate_limit_exceeded", err.code)
        assert.equal("rate_limit_error", err.type)
        assert.matches("The limit of key 'k' is 3 requests per minute%. Try again in 61 s%.", err.message)
        assert.equal(0, _G.ngx.header["x-ratelimit-remaining-requests"])
        assert.is_true(limits.enter(key { name = "other", requests_per_minute = 1 }, {}), "each key has its own")
    end)

    it("do not count what they refuse", function()
        local k = key { requests_per_minute = 1 }
        assert.is_true(limits.enter(k, {}))
        for _ = 1, 100 do
            clock.now = clock.now + 0.5
            assert.is_nil((limits.enter(k, {})))
        end
        clock.now = clock.now + 11
        assert.is_true(limits.enter(k, {}))
    end)

    it("never refuse a client that keeps to its rate", function()
        for _, rate in ipairs { 1, 2, 7, 12, 60, 600 } do
            for _, offset in ipairs { 0, 0.3, 2.5, 4.9 } do
                clock.now = 1000000000 + offset
                local k = key { name = rate .. "/" .. offset, requests_per_minute = rate }
                for i = 1, 4 * rate do
                    clock.now = 1000000000 + offset + i * 60 / rate
                    assert.is_true(limits.enter(k, {}), rate .. " per minute, request " .. i)
                end
            end
        end
    end)

    it("hold in every minute but for what came within five seconds, and Retry-After is true: random cases", function()
        math.randomseed(7)
        for round = 1, 40 do
            local most = math.random(1, 30)
            local k = key { name = "r" .. round, requests_per_minute = most }
            local let_in = {}
            for _ = 1, 400 do
                clock.now = clock.now + math.random() ^ 4 * 20
                local ok, err = limits.enter(k, {})
                if ok then
                    let_in[#let_in + 1] = clock.now
                    local sum = 0
                    for _, at in ipairs(let_in) do
                        sum = sum + (at > clock.now - 55 and 1 or 0)
                    end
                    assert.is_true(sum <= most, sum .. " in 55 s, limit " .. most)
                else
                    assert.is_true(err.retry_after > 0 and err.retry_after <= 60.01, tostring(err.retry_after))
                    local now = clock.now
                    clock.now = now + err.retry_after - 0.01
                    if err.retry_after > 0.02 then
                        assert.is_nil((limits.enter(k, {})), "too early by its own word")
                    end
                    clock.now = now + err.retry_after
                    assert.is_true(limits.enter(k, {}), "let in when it was told")
                    let_in[#let_in + 1] = clock.now
                end
            end
        end
    end)

    it("forget: after a minute nothing is left", function()
        local k = key { requests_per_minute = 5 }
        for _ = 1, 5 do
            limits.enter(k, {})
        end
        clock.now = clock.now + 66
        for i = 0, 13 do
            assert.is_nil(dict:get("rpm:" .. i .. ":k"))
        end
    end)

    it("count requests at a time over all workers, until each leaves", function()
        serve(10, 11)
        local k, a, b, c = key { concurrent = 2 }, {}, {}, {}
        assert.is_true(limits.enter(k, a))
        assert.equal(1, _G.ngx.header["x-ratelimit-remaining-concurrent"])
        serve(11, 10)
        assert.is_true(limits.enter(k, b))
        local ok, err = limits.enter(k, c)
        assert.is_nil(ok)
        assert.equal(429, err.status)
        assert.matches("2 requests at a time", err.message)
        assert.equal(2, limits.state({ k })[1].at_work)
        limits.leave(c)
        assert.equal(2, limits.state({ k })[1].at_work, "the refused one held nothing")
        limits.leave(a)
        limits.leave(a)
        assert.equal(1, limits.state({ k })[1].at_work)
        assert.is_true(limits.enter(k, c))
        serve(11)
        assert.equal(2, limits.state({ k })[1].at_work, "the place of worker 10 was free already")
    end)

    it("a worker that died holds nothing", function()
        serve(10, 11)
        local k = key { concurrent = 1 }
        assert.is_true(limits.enter(k, {}))
        serve(11)
        assert.is_true(limits.enter(k, {}))
    end)

    it("one that is refused for its rate holds no place", function()
        local k = key { concurrent = 5, requests_per_minute = 1 }
        assert.is_true(limits.enter(k, {}))
        assert.is_nil((limits.enter(k, {})))
        assert.equal(1, limits.state({ k })[1].at_work)
        assert.equal(1, limits.state({ k })[1].requests)
    end)

    it("do not stop all when memory is full", function()
        dict.full = true
        assert.is_true(limits.enter(key { concurrent = 1, requests_per_minute = 1 }, {}))
    end)

    it("name the models that are allowed", function()
        local k = key { models = { "llama*", "gemma3:latest", "phi" } }
        for _, model in ipairs { "llama3:8b", "gemma3", "gemma3:latest", "phi", "phi:latest" } do
            assert.is_true(limits.allows(k, model), model)
        end
        local ok, err = limits.allows(k, "mistral")
        assert.is_nil(ok)
        assert.equal(403, err.status)
        assert.equal("model_not_allowed", err.code)
        assert.matches("may not use model 'mistral'%. It may use: llama%*, gemma3:latest, phi%.", err.message)
        assert.is_true(limits.allows(nil, "mistral"))
        assert.is_true(limits.allows(key {}, "mistral"))
    end)
end)
