-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local peers = require "llm_cluster.peers"

local function valid()
    return {
        schema = 1, default_model = "m",
        peers = {
            { name = "n1", node = "n1", engine = "llama_cpp", address = "10.0.0.1", port = 8000, models = { "m" }, slots = 4 },
            { name = "n2/x", node = "n2", engine = "ollama", address = "fd00::2", port = 8000, models = { "m", "x:latest" },
              slots = 2, weight = 0.5, backup = true, labels = { gpu = 24 } },
        },
        keys = { { name = "demo", sha256 = ("Ab"):rep(32) } },
    }
end

describe("peers.validate", function()
    it("fills in defaults and changes nothing it was given", function()
        local t = assert(peers.validate(valid()))
        assert.equal(1, t.peers[1].weight)
        assert.is_false(t.peers[1].backup)
        assert.equal(0.5, t.peers[2].weight)
        assert.is_true(t.require_key)
        assert.equal(("ab"):rep(32), t.keys[1].sha256)
        assert.equal(60, t.limits.queue_timeout)
        assert.same(t, peers.validate(cjson.decode(cjson.encode(t))), "what it accepted it accepts again")
    end)

    local cases = {
        { "schema: must be 1", function(t) t.schema = nil end },
        { "table: unknown field 'peer'", function(t) t.peer = {} end },
        { "peers: must be a list", function(t) t.peers = nil end },
        { "peers: must be a list", function(t) t.peers = { a = 1 } end },
        { "peers[n1]: unknown field 'slot'", function(t) t.peers[1].slot = 4 end },
        { ".name: must be a name", function(t) t.peers[1].name = "a b" end },
        { ".name: must be a name", function(t) t.peers[1].name = "a\r\nX: y" end },
        { "'n1' is used by two peers", function(t) t.peers[2].name = "n1" end },
        { "is also peer 'n1'", function(t) t.peers[2].address = "10.0.0.1" end },
        { "peers[n1].node", function(t) t.peers[1].node = "" end },
        { "peers[n1].engine: must be llama_cpp or ollama, not 'vllm'", function(t) t.peers[1].engine = "vllm" end },
        { "peers[n1].address", function(t) t.peers[1].address = "10.0.0.256" end },
        { "peers[n1].address", function(t) t.peers[1].address = "unix:/x" end },
        { "peers[n1].port", function(t) t.peers[1].port = 0 end },
        { "peers[n1].port", function(t) t.peers[1].port = "8000" end },
        { "peers[n1].models", function(t) t.peers[1].models = {} end },
        { "peers[n1].models[1]", function(t) t.peers[1].models = { "a\nb" } end },
        { "'m' is listed twice", function(t) t.peers[1].models = { "m", "m" } end },
        { "peers[n1].slots", function(t) t.peers[1].slots = 1.5 end },
        { "peers[n1].weight", function(t) t.peers[1].weight = 0 end },
        { "peers[n1].backup", function(t) t.peers[1].backup = "yes" end },
        { "peers[n1].labels", function(t) t.peers[1].labels = "a" end },
        { "default_model: no peer serves 'z'", function(t) t.default_model = "z" end },
        { "require_key", function(t) t.require_key = "yes" end },
        { "keys: require_key is on", function(t) t.keys = cjson.null end },
        { "keys[1].sha256", function(t) t.keys[1].sha256 = "abc" end },
        { "keys[1]: unknown field 'key'", function(t) t.keys[1].key = "secret" end },
        { "'demo' is used twice", function(t) t.keys[2] = t.keys[1] end },
        { "limits: unknown field 'x'", function(t) t.limits = { x = 1 } end },
        { "limits.probe_interval", function(t) t.limits = { probe_interval = 0 } end },
        { "limits.queue_timeout", function(t) t.limits = { queue_timeout = "60" } end },
    }
    for _, case in ipairs(cases) do
        it("refuses with: " .. case[1], function()
            local t = valid()
            case[2](t)
            local got, problems = peers.validate(t)
            assert.is_nil(got)
            assert.is_truthy(table.concat(problems, "; "):find(case[1], 1, true), table.concat(problems, "; "))
        end)
    end

    it("gives all reasons at once", function()
        local t = valid()
        t.schema, t.peers[1].slots, t.peers[2].port = 2, 0, 0
        local _, problems = peers.validate(t)
        assert.equal(3, #problems)
    end)

    it("never fails on what is no table", function()
        local values = { 1, "x", true, cjson.null, {}, { 1, 2 }, { peers = 1 }, { peers = { 1 } }, { keys = "x" } }
        for _, value in ipairs(values) do
            local got, problems = peers.validate(value)
            assert.is_nil(got)
            assert.is_true(#problems > 0)
        end
    end)
end)

describe("peers.resolve_model", function()
    local known = { a = true, ["b:latest"] = true, ["c:7b"] = true }
    it("takes a name as it is, then with or without :latest", function()
        for asked, want in pairs { a = "a", ["a:latest"] = "a", b = "b:latest", ["b:latest"] = "b:latest", ["c:7b"] = "c:7b" } do
            assert.equal(want, peers.resolve_model(known, asked))
        end
        for _, asked in ipairs { "c", "", ":latest", "A", "b:7b", "a:latest:latest" } do
            assert.is_nil(peers.resolve_model(known, asked))
        end
    end)
end)

describe("peers.build", function()
    local view = peers.build(peers.validate(valid()), { n2 = { operator = { reason = "disk", since = 1 } }, n1 = {} })

    it("indexes by name and model", function()
        assert.equal("n1@10.0.0.1:8000", view.by_name.n1.id)
        assert.equal("[fd00::2]", view.by_name["n2/x"].host)
        assert.same({ "m", "x:latest" }, view.models)
        assert.equal(2, #view.by_model.m)
        assert.equal("m", view.default_model)
        assert.is_true(view.engines.ollama)
    end)

    it("holds a node's drain against all its peers", function()
        assert.is_false(peers.is_drained(view, view.by_name.n1))
        assert.is_true(peers.is_drained(view, view.by_name["n2/x"]))
        assert.equal("disk", peers.drains_of(view, view.by_name["n2/x"])[1].reason)
        assert.same({}, peers.drains_of(view, view.by_name.n1))
    end)
end)

describe("peers.view", function()
    local real_ngx = _G.ngx

    after_each(function()
        _G.ngx = real_ngx
    end)

    it("has every limit, also of a table that a version before the reload kept with fewer", function()
        local t = peers.validate(valid())
        t.limits = { queue_timeout = 7, canary_interval = 0 }
        local kept = { version = 1, routing_version = 1, routing = cjson.encode(t) }
        _G.ngx = { shared = { llm_state = { get = function(_, key) return kept[key] end } } }
        local limits = peers.view().limits
        for name, range in pairs(peers.LIMITS) do
            assert.equal(name == "queue_timeout" and 7 or range[1], limits[name], name)
        end
    end)
end)
