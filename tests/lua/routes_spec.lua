-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local peers = require "llm_cluster.peers"
local routes = require "llm_cluster.routes"

local file = assert(io.open("tests/fixtures/routes.json"))
local fixture = cjson.decode(file:read("*a"))
file:close()

local function checked(list, all)
    local problems = {}
    routes.check(list, all or fixture.peers, problems)
    return problems
end

local function view_of(list, all)
    local t, problems = peers.validate { schema = 1, require_key = false, peers = all or fixture.peers, routes = list }
    assert(t, problems and table.concat(problems, "; "))
    return peers.build(t)
end

local function names_of(list, wanted)
    local out = {}
    for _, peer in ipairs(list) do
        if not wanted or wanted[peer.id] then
            out[#out + 1] = peer.name
        end
    end
    return out
end

local function route_named(view, name)
    for _, route in ipairs(view.routes) do
        if route.name == name then
            return route
        end
    end
    error("no route " .. name)
end

describe("routes, the cases shared with Ansible:", function()
    for _, case in ipairs(fixture.cases) do
        it(case.name, function()
            local problems = checked(case.routes)
            if case.problem ~= cjson.null then
                assert.is_truthy(table.concat(problems, "; "):find(case.problem, 1, true), table.concat(problems, "; "))
                return
            end
            assert.same({}, problems)
            local view = view_of(case.routes)
            for name, models in pairs(case.allowed or {}) do
                for model, want in pairs(models) do
                    assert.same(want, names_of(routes.peers(view, route_named(view, name), model).peers), name .. " " .. model)
                end
            end
            for name, models in pairs(case.preferred or {}) do
                for model, want in pairs(models) do
                    local set = routes.peers(view, route_named(view, name), model)
                    assert.same(want, set.preferred and names_of(set.peers, set.preferred) or {}, name .. " " .. model)
                end
            end
        end)
    end
end)

describe("routes.check", function()
    local cases = {
        { "can match no peer: no peer has the label 'gpu'", { name = "a", require = { gpu = 1 } } },
        { "can match no peer: none of gpu1, gpu2, cpu1/mistral-7b, cpu1/phi3, cpu2 has gpu_memory_gb >48",
            { name = "a", require = { gpu_memory_gb = ">48" } } },
        { "can match no peer: none of cpu2 serves 'llama*'", { name = "a", when = { model = "llama*" }, peers = { "cpu2" } } },
        { ".when.path: the balancer answers requests for inference on no such path", { name = "a", when = { path = "/v2/*" } } },
        { "on this path only peers of engine ollama answer, and none of cpu1/mistral-7b, cpu1/phi3 is one",
            { name = "a", when = { path = "/api/chat" }, peers = { "cpu1" } } },
        { "no number is over 5 and under 6 (messages)", { name = "a", when = { messages_over = 5, messages_under = 6 } } },
        { "routes[a b].name", { name = "a b" } },
        { "routes[1].name", { name = 7 } },
    }
    for _, case in ipairs(cases) do
        it("refuses with: " .. case[1], function()
            local problems = checked { case[2] }
            assert.equal(1, #problems, table.concat(problems, "; "))
            assert.is_truthy(problems[1]:find(case[1], 1, true), problems[1])
            assert.is_truthy(problems[1]:find("^routes%["), problems[1])
        end)
    end

    it("says every thing that is wrong, each with its route's name", function()
        local problems = checked {
            { name = "a", when = { stream = 1, model = {} }, model = "?" }, { name = "b", peers = { "x", "y" } }, 7,
        }
        assert.equal(6, #problems, table.concat(problems, "; "))
    end)

    it("reaches through peers.validate", function()
        local t, problems = peers.validate {
            schema = 1, require_key = false, peers = fixture.peers, routes = { { name = "a", require = { x = 1 } } },
        }
        assert.is_nil(t)
        assert.same({ "routes[a]: can match no peer: no peer has the label 'x'" }, problems)
    end)

    it("never fails on what is no route", function()
        local odd = { 1, true, "x", cjson.null, {}, { 1 }, { a = { {} } }, { "x", a = 1 }, 1 / 0, -1, 0 / 0, "*", ">1" }
        for _, name in ipairs { "name", "when", "require", "prefer", "peers", "model", "fallback" } do
            for _, value in ipairs(odd) do
                checked { { name = "a", [name] = value } }
            end
        end
        for _, name in ipairs { "model", "path", "key", "stream", "messages_over", "prompt_chars_under" } do
            for _, value in ipairs(odd) do
                checked { { name = "a", when = { [name] = value } } }
                checked { { name = "a", require = { [name] = value }, prefer = { zone = value } } }
            end
        end
    end)
end)

describe("routes.match", function()
    local view = view_of {
        { name = "batch", when = { key = "batch-*", stream = false }, peers = { "cpu2" } },
        { name = "alias", when = { model = { "gpt-4o", "gpt-3.5-turbo", "gpt-4*" } }, model = "phi3", fallback = "mistral:7b" },
        { name = "raw", when = { path = "/v1/completions" } },
        { name = "long", when = { prompt_chars_over = 1000, prompt_chars_under = 2000 } },
        { name = "chatty", when = { messages_over = 5 } },
        { name = "short", when = { messages_under = 2, prompt_chars_under = 10 }, model = "phi3" },
        { name = "phi", when = { model = "phi3" } },
    }
    local function matched(facts)
        local all = { model = "llama3:8b", path = "/v1/chat/completions", stream = true, prompt_chars = 100, messages = 3 }
        for name, value in pairs(facts) do
            all[name] = value
        end
        local route = routes.match(view.routes, all)
        return route and route.name
    end
    local cases = {
        { nil, {} },
        { "batch", { key = "batch-1", stream = false } }, { nil, { key = "batch-1" } }, { nil, { stream = false } },
        { "batch", { key = "batch-1", stream = false, model = "phi3" } },
        { "alias", { model = "gpt-4o" } }, { "alias", { model = "gpt-4-turbo" } }, { nil, { model = "gpt-5" } },
        { "raw", { path = "/v1/completions" } },
        { nil, { prompt_chars = 1000 } }, { "long", { prompt_chars = 1001 } }, { "long", { prompt_chars = 1999 } },
        { nil, { prompt_chars = 2000 } },
        { nil, { messages = 5 } }, { "chatty", { messages = 6 } }, { "long", { messages = 6, prompt_chars = 1500 } },
        { "short", { messages = 1, prompt_chars = 9 } }, { nil, { messages = 1 } },
        { "phi", { model = "phi3" } }, { "phi", { model = "phi3:latest" } },
    }
    for _, case in ipairs(cases) do
        it(cjson.encode(case[2]) .. " → " .. tostring(case[1]), function()
            assert.equal(case[1], matched(case[2]))
            assert.equal(case[1], matched(case[2]), "the same again, from what it remembers")
        end)
    end

    it("does not turn a misspelt model into another", function()
        assert.is_nil(matched { model = "lama3", messages = 1, prompt_chars = 1 })
    end)

    it("gives the names of models as the table has them", function()
        local route = routes.match(view.routes, { model = "gpt-4o", path = "/v1/chat/completions", stream = false,
            prompt_chars = 0, messages = 0 })
        assert.equal("phi3:latest", route.model)
        assert.equal("mistral:7b", route.fallback)
    end)

    it("keeps few of the names that clients make up", function()
        for i = 1, 3000 do
            matched { model = "made-up-" .. i }
        end
        assert.is_true(view.routes.remembered <= 1000)
        assert.equal("phi", matched { model = "phi3" })
        assert.equal("alias", matched { model = "gpt-4-new" })
    end)

    it("is nil without routes", function()
        assert.is_nil(routes.match(view_of({}).routes, { model = "phi3" }))
    end)
end)

describe("routes.needs", function()
    it("asks for the shape only where a route looks at it", function()
        local needs = routes.needs(view_of({ { name = "a", when = { model = "phi3" } } }).routes)
        assert.is_false(needs.prompt_chars)
        assert.is_false(needs.messages)
        assert.is_true(routes.needs(view_of({ { name = "a", when = { prompt_chars_under = 5 } } }).routes).prompt_chars)
        assert.is_true(routes.needs(view_of({ { name = "a", when = { messages_over = 5 } } }).routes).messages)
    end)
end)

describe("routes.aliases", function()
    it("lists names that the table does not have, once", function()
        local view = view_of {
            { name = "a", when = { model = { "gpt-4o", "gpt-4*", "phi3", "llama3:8b" } }, model = "phi3" },
            { name = "b", when = { model = { "gpt-4o", "o1" } }, model = "phi3" },
            { name = "c", when = { model = { "phi3", "none" } } },
        }
        assert.same({ "gpt-4o", "o1" }, routes.aliases(view.routes))
    end)
end)

describe("routes.peers", function()
    local list = {
        { name = "a", peers = { "gpu1", "gpu2" } }, { name = "b", require = { groups = "llama_nodes" } },
        { name = "c", prefer = { memory_gb = ">1" } }, { name = "d", prefer = { ssd = true } },
        { name = "e", prefer = { groups = "llama_nodes" } },
    }
    local view = view_of(list)

    it("is made once", function()
        assert.equal(routes.peers(view, nil, "phi3:latest"), routes.peers(view, nil, "phi3:latest"))
        local route = view.routes[1]
        assert.equal(routes.peers(view, route, "llama3:8b"), routes.peers(view, route, "llama3:8b"))
    end)

    it("names equal lists alike, also in another view, and others not", function()
        local key = routes.peers(view, view.routes[1], "llama3:8b").key
        assert.equal(key, routes.peers(view, view.routes[2], "llama3:8b").key)
        assert.equal(key, routes.peers(view_of(list), nil, "llama3:8b").key)
        assert.not_equal(key, routes.peers(view, view.routes[1], "phi3:latest").key)
        local seen = {}
        for i = 1, 200 do
            local all = {
                { name = "a", engine = "ollama", address = "192.0.2." .. i, port = 8000, models = { "m" } },
                { name = "b", engine = "ollama", address = "192.0.2.9", port = 8000 + i, models = { "m" } },
            }
            local built = peers.build { peers = all, routes = {}, limits = {}, default_model = "" }
            local each = routes.peers(built, nil, "m").key
            assert.is_nil(seen[each])
            seen[each] = true
        end
    end)

    it("narrows by engine", function()
        assert.same({ "gpu1", "cpu2" }, names_of(routes.peers(view, nil, "phi3:latest", "ollama").peers))
        assert.same({ "gpu1", "cpu1/phi3", "cpu2" }, names_of(routes.peers(view, nil, "phi3:latest").peers))
    end)

    it("has nothing preferred where all or none are", function()
        assert.is_nil(routes.peers(view, view.routes[3], "phi3:latest").preferred)
        assert.is_nil(routes.peers(view, view.routes[4], "mistral:7b", "llama_cpp").preferred)
        assert.is_nil(routes.peers(view, view.routes[5], "llama3:8b").preferred)
        assert.same({ ["gpu1@192.0.2.11:8000"] = true }, routes.peers(view, view.routes[4], "mistral:7b").preferred)
    end)

    it("is nil for a model that the table does not have", function()
        assert.is_nil(routes.peers(view, nil, "x"))
    end)
end)
