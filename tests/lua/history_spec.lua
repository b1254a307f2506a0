-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"

local LOADED = { "metrics", "peers", "queue", "slots", "history" }

describe("history", function()
    local history, values

    before_each(function()
        values = {}
        for _, name in ipairs(LOADED) do
            package.loaded["llm_cluster." .. name] = name ~= "history" and {} or nil
        end
        _G.ngx = { shared = { llm_metrics = { get = function(_, key) return values[key] end } } } -- luacheck: ignore 122
        history = require "llm_cluster.history"
    end)

    after_each(function()
        for _, name in ipairs(LOADED) do
            package.loaded["llm_cluster." .. name] = nil
        end
        _G.ngx = nil -- luacheck: ignore 122
    end)

    it("tells what happened between two points", function()
        local from = {
            at = 100, requests = 10, answered = 8, duration = 16, first_byte = 4, timed_out = 1, failed = 2, hits = 1, misses = 1,
            completion_tokens = 100, prompt_tokens = 1000, cached_tokens = 0,
        }
        local to = {
            at = 130, requests = 30, answered = 18, duration = 46, first_byte = 9, timed_out = 6, failed = 12, hits = 4,
            misses = 2, completion_tokens = 700, prompt_tokens = 2000, cached_tokens = 250,
        }
        assert.same({
            requests_per_minute = 40, answered_per_minute = 20, latency = 3, first_byte = 0.5, timed_out = 0.25, failed = 0.5,
            tokens_per_second = 20, hits = 0.75, cached = 0.25,
        }, history.between(from, to))
    end)

    it("has no mean of nothing", function()
        local quiet = history.between({ at = 1, requests = 5, answered = 5, duration = 5 },
            { at = 11, requests = 5, answered = 5, duration = 5 })
        assert.equal(0, quiet.requests_per_minute)
        assert.equal(0, quiet.tokens_per_second)
        for _, name in ipairs { "latency", "first_byte", "timed_out", "failed", "hits", "cached" } do
            assert.is_nil(quiet[name], name)
        end
    end)

    it("takes sums that went back as started anew", function()
        local step = history.between({ at = 0, requests = 100, answered = 100, duration = 500 },
            { at = 60, requests = 3, answered = 3, duration = 6 })
        assert.equal(3, step.requests_per_minute)
        assert.equal(2, step.latency)
    end)

    describe("the last minute", function()
        local POINTS = {
            { at = 900, requests = 5 }, { at = 930.5, requests = 6 }, { at = 940, requests = 7 }, { at = 995, requests = 37 },
        }
        local now

        before_each(function()
            now = { n1 = { requests = 30, answered = 20, duration = 40, timed_out = 3 }, new = { requests = 2 } }
            package.loaded["llm_cluster.metrics"].peer_totals = function(name) return now[name] end
            package.loaded["llm_cluster.peers"].view = function()
                return { peers = { { name = "n1" }, { name = "new" } } }
            end
        end)

        it("begins with the newest point that is a minute old", function()
            assert.is_true(math.abs(31 / 64.5 * 60 - history.last_minute(POINTS).requests_per_minute) < 1e-9)
        end)

        it("begins with the oldest point where none is a minute old", function()
            assert.equal(40, history.last_minute({ { at = 900 }, { at = 930, requests = 20 } }).requests_per_minute)
        end)

        it("tells each peer's", function()
            values["@peers:93"] = cjson.encode { n1 = { requests = 10, answered = 10, duration = 20, timed_out = 1 } }
            local minutes = history.last_minute_of_peers(POINTS)
            assert.equal(20 / 64.5 * 60, minutes.n1.requests_per_minute)
            assert.equal(2, minutes.n1.latency)
            assert.equal(0.1, minutes.n1.timed_out)
            assert.equal(2 / 64.5 * 60, minutes.new.requests_per_minute)
            assert.is_nil(minutes.new.latency)
        end)

        it("knows no peer's where nobody noted them", function()
            assert.same({}, history.last_minute_of_peers(POINTS))
        end)

        it("counts from the start where that was less than a minute ago", function()
            assert.equal(60, history.last_minute_of_peers({ { at = 900 }, { at = 930, requests = 30 } }).n1.requests_per_minute)
        end)
    end)

    it("survives two points at one moment", function()
        assert.is_true(history.between({ at = 5, requests = 0 }, { at = 5, requests = 1 }).requests_per_minute < math.huge)
    end)

    it("gives the last 15 minutes, oldest first, gaps left out", function()
        for _, n in ipairs { 9, 10, 11, 99, 100 } do
            values["@" .. n] = cjson.encode { at = n * 10 }
        end
        values["@50"] = "broken"
        local now = { at = 1004 }
        local at = {}
        for i, point in ipairs(history.points(now)) do
            at[i] = point.at
        end
        assert.same({ 100, 110, 990, 1000, 1004 }, at)
        values["@start"] = 95.5
        assert.equal(100, history.points(now)[1].at) -- long ago
        values["@start"] = 983
        assert.same({ at = 983 }, history.points({ at = 990 })[1])
    end)
end)
