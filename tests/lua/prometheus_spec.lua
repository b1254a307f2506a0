-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

describe("prometheus.text", function()
    local prometheus

    before_each(function()
        package.loaded["llm_cluster.metrics"] = {
            BUCKETS = { 0.5, 1 },
            FAMILIES = {
                requests = { name = "requests_total", type = "counter", labels = { "model" }, help = "Requests." },
                wait = { name = "wait_seconds", type = "histogram", labels = {}, help = "Waits." },
                ttfb = { name = "ttfb_seconds", type = "histogram", labels = { "model" }, help = "First byte." },
            },
        }
        package.loaded["llm_cluster.prometheus"] = nil
        prometheus = require "llm_cluster.prometheus"
    end)

    after_each(function()
        package.loaded["llm_cluster.metrics"], package.loaded["llm_cluster.prometheus"] = nil, nil
    end)

    it("has families in order, sorted, histograms cumulative", function()
        local text = prometheus.text({
            requests = { { parts = { "requests", "m" }, value = 3 }, { parts = { "requests", "" }, value = 1e15 } },
            ttfb = {
                { parts = { "ttfb", "m", "3" }, value = 4 }, { parts = { "ttfb", "m", "1" }, value = 2 },
                { parts = { "ttfb", "m", "sum" }, value = 7.25 },
            },
        }, { { name = "up", help = "Up.", labels = { "peer" }, values = { { "n1", value = 1 } } } })
        assert.equal([[
# HELP llm_cluster_requests_total Requests.
# TYPE llm_cluster_requests_total counter
llm_cluster_requests_total{model=""} 1e+15
llm_cluster_requests_total{model="m"} 3
# HELP llm_cluster_ttfb_seconds First byte.
# TYPE llm_cluster_ttfb_seconds histogram
llm_cluster_ttfb_seconds_bucket{model="m",le="0.5"} 2
llm_cluster_ttfb_seconds_bucket{model="m",le="1"} 2
llm_cluster_ttfb_seconds_bucket{model="m",le="+Inf"} 6
llm_cluster_ttfb_seconds_sum{model="m"} 7.25
llm_cluster_ttfb_seconds_count{model="m"} 6
# HELP llm_cluster_wait_seconds Waits.
# TYPE llm_cluster_wait_seconds histogram
llm_cluster_wait_seconds_bucket{le="0.5"} 0
llm_cluster_wait_seconds_bucket{le="1"} 0
llm_cluster_wait_seconds_bucket{le="+Inf"} 0
llm_cluster_wait_seconds_sum 0
llm_cluster_wait_seconds_count 0
# HELP llm_cluster_up Up.
# TYPE llm_cluster_up gauge
llm_cluster_up{peer="n1"} 1
]], text)
    end)

    it("escapes what labels hold", function()
        local text = prometheus.text({ requests = { { parts = { "requests", 'a"b\\c\nd' }, value = 1 } } }, {})
        assert.is_truthy(text:find('llm_cluster_requests_total{model="a\\"b\\\\c\\nd"} 1\n', 1, true), text)
    end)
end)
