-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- A shared dict and a clock as far as metrics.lua uses them.
local function fake_ngx()
    local values = {}
    local dict = {
        incr = function(_, key, n, init)
            values[key] = (values[key] or init) + n
            return values[key]
        end,
        get = function(_, key) return values[key] end,
        set = function(_, key, value) values[key] = value end,
        delete = function(_, key) values[key] = nil end,
        get_keys = function()
            local keys = {}
            for key in pairs(values) do
                keys[#keys + 1] = key
            end
            return keys
        end,
    }
    return {
        now = function() return 100 end, shared = { llm_metrics = dict }, values = values,
        timer = { at = function(_, callback) dict.flush = callback return true end },
    }
end

describe("metrics", function()
    local metrics, fake, view

    before_each(function()
        fake = fake_ngx()
        _G.ngx = fake -- luacheck: ignore 122
        view = {
            by_model = { m = {}, other = {} }, by_name = { n1 = {}, n2 = {} }, table = { keys = { { name = "ann" } } },
        }
        package.loaded["llm_cluster.peers"] = { view = function() return view end }
        package.loaded["llm_cluster.metrics"] = nil
        metrics = require "llm_cluster.metrics"
    end)

    after_each(function()
        package.loaded["llm_cluster.peers"], package.loaded["llm_cluster.metrics"] = nil, nil
        _G.ngx = nil -- luacheck: ignore 122
    end)

    local function request(fields)
        local ctx = { start = 98, status = 200, model = "m", peer = "n1", key = "ann", ttfb = 0.2 }
        for name, value in pairs(fields or {}) do
            ctx[name] = value ~= "nothing" and value or nil
        end
        return ctx
    end

    local function value(...)
        return fake.values[table.concat({ ... }, "\t")]
    end

    it("counts a request once it is flushed", function()
        metrics.observe(request { waited = 0.3, affinity = "hit", usage = { prompt = 10, completion = 3, cached = 8 } })
        assert.is_nil(value("requests", "m", "n1", "200"))
        fake.shared.llm_metrics.flush()
        assert.equal(1, value("requests", "m", "n1", "200"))
        assert.equal(1, value("keys", "ann", "2xx"))
        assert.equal(1, value("ttfb", "m", 6)) -- up to 0.25
        assert.equal(0.2, value("ttfb", "m", "sum"))
        assert.equal(1, value("duration", "m", 9)) -- up to 2.5
        assert.equal(2, value("duration", "m", "sum"))
        assert.equal(1, value("wait", 7)) -- up to 0.5
        assert.equal(10, value("tokens", "m", "prompt"))
        assert.equal(8, value("tokens", "m", "cached"))
        assert.equal(1, value("affinity", "hit"))
        assert.same({ 1, 0, 0, 1, 2, 1 }, (function(t)
            return { t.requests, t.failed, t.timed_out, t.answered, t.duration, t.hits }
        end)(metrics.totals()))
    end)

    it("adds up", function()
        for _ = 1, 3 do
            metrics.observe(request())
        end
        metrics.flush()
        metrics.observe(request())
        metrics.flush()
        assert.equal(4, value("requests", "m", "n1", "200"))
        assert.equal(4, metrics.totals().requests)
    end)

    it("puts a value on a bound into its bucket, and the longest into the last", function()
        metrics.observe(request { ttfb = 0.25 })
        metrics.observe(request { ttfb = 601 })
        metrics.flush()
        assert.equal(1, value("ttfb", "m", 6))
        assert.equal(1, value("ttfb", "m", #metrics.BUCKETS + 1))
    end)

    it("knows what failed and what timed out", function()
        local cases = { -- status, error, failed, timed out
            { 200, nil, 0, 0 }, { 400, nil, 0, 0 }, { 499, nil, 0, 0 }, { 429, "rate_limit_exceeded", 0, 0 },
            { 503, "queue_timeout", 1, 1 }, { 503, "queue_full", 1, 0 }, { 504, "first_byte_timeout", 1, 1 },
            { 200, "stream_broken", 1, 0 }, { 200, "stream_idle", 1, 1 }, { 500, "peer_500", 1, 0 },
        }
        local failed, timed_out = 0, 0
        for _, case in ipairs(cases) do
            metrics.observe(request { status = case[1], error = case[2] })
            failed, timed_out = failed + case[3], timed_out + case[4]
            local totals = metrics.totals()
            assert.same({ failed, timed_out }, { totals.failed, totals.timed_out }, case[1] .. " " .. tostring(case[2]))
        end
        assert.equal(1, value("errors", "peer_5xx"))
    end)

    it("adds up for each peer what it was the last to hold", function()
        metrics.observe(request())
        metrics.observe(request { status = 504, error = "first_byte_timeout", ttfb = "nothing" })
        metrics.observe(request { peer = "n2" })
        metrics.observe(request { peer = "nothing", status = 503, error = "queue_timeout", ttfb = "nothing" })
        metrics.observe(request { peer = "gone" })
        metrics.flush()
        assert.same({ requests = 2, answered = 1, duration = 2, timed_out = 1 }, metrics.peer_totals("n1"))
        assert.same({ requests = 1, answered = 1, duration = 2, timed_out = 0 }, metrics.peer_totals("n2"))
        metrics.forget_peer("n1")
        assert.same({ requests = 0, answered = 0, duration = 0, timed_out = 0 }, metrics.peer_totals("n1"))
        assert.equal(1, metrics.peer_totals("n2").requests)
        assert.equal(5, metrics.totals().requests)
    end)

    it("takes labels from the table and from lists only", function()
        metrics.observe(request { model = "gone", peer = "gone" })
        metrics.observe(request { status = 418 })
        metrics.observe(request { model = "nothing", peer = "nothing", key = "nothing", ttfb = "nothing", status = 404 })
        metrics.flush()
        assert.equal(1, value("requests", "", "", "200"))
        assert.equal(1, value("requests", "m", "n1", "4xx"))
        assert.equal(1, value("requests", "", "", "404"))
        assert.equal(2, metrics.totals().requests) -- what asks for no model is no work
    end)

    it("counts events", function()
        metrics.event("retry", "closed")
        metrics.event("retry", "closed")
        metrics.event("queue_full")
        metrics.event("ejection", "n1", "connection refused")
        metrics.event("return", "n1", "2 probes answered")
        metrics.flush()
        assert.equal(2, value("retries", "closed"))
        assert.equal(1, value("events", "queue_full"))
        assert.equal(1, value("ejections", "n1"))
        local latest = metrics.latest()
        assert.same({ "return", "n1", "2 probes answered" }, { latest[1].kind, latest[1].peer, latest[1].reason })
        assert.equal(2, #latest)
        for i = 1, 30 do
            metrics.event("ejection", "n2", "reason " .. i)
        end
        assert.equal("reason 30", metrics.latest()[1].reason)
        assert.equal(20, #metrics.latest())
    end)

    it("forgets what the table has no more", function()
        metrics.observe(request { peer = "n2" })
        metrics.observe(request())
        metrics.event("ejection", "n2", "x")
        view = { by_model = { m = {} }, by_name = { n1 = {} }, table = { keys = {} } }
        local read = metrics.read()
        assert.equal(1, #read.requests)
        assert.same({ "requests", "m", "n1", "200" }, read.requests[1].parts)
        assert.is_nil(read.keys)
        assert.is_nil(read.ejections)
        assert.is_nil(value("requests", "m", "n2", "200"))
    end)

    it("flushes at once in a worker that ends", function()
        fake.timer.at = function() return nil, "process exiting" end
        metrics.observe(request())
        assert.equal(1, value("requests", "m", "n1", "200"))
    end)
end)
