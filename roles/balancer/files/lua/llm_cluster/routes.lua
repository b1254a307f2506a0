-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Rules on a request (model, prompt size, turns …) that narrow which peers may take it. Pure.
--
-- Routes are looked at in order, and only the first one that holds takes effect. Everything that depends on the table alone is
-- worked out when the table changes (compile) or once for each model (peers); a request costs a few lookups and comparisons.

local labels = require "llm_cluster.labels"
local names = require "llm_cluster.names"
local surface = require "llm_cluster.surface"

local null = require("cjson.safe").null

local M = {}

local MAX_ROUTES = 500
local MAX_REMEMBERED = 1000 -- names of models for which the routes in question are kept; a client can ask for any name

local FIELDS = { name = true, when = true, require = true, prefer = true, peers = true, model = true, fallback = true }
local TEXTS = { "model", "path", "key" }
local NUMBERS = { "prompt_chars_over", "prompt_chars_under", "messages_over", "messages_under" }
local WHEN = { stream = true }
for _, list in ipairs { TEXTS, NUMBERS } do
    for _, name in ipairs(list) do
        WHEN[name] = true
    end
end

local function given(value)
    return value ~= nil and value ~= null
end

--- The value of an optional field.
local function field(value)
    if value == null then
        return nil
    end
    return value
end

local function sorted_keys(t)
    local out = {}
    for key in pairs(t) do
        out[#out + 1] = tostring(key)
    end
    table.sort(out)
    return out
end

--- One text or a list of at least one, none empty.
local function is_texts(value)
    if type(value) == "string" then
        return value ~= ""
    end
    if type(value) ~= "table" or #value == 0 then
        return false
    end
    local count = 0
    for _, text in pairs(value) do
        count = count + 1
        if type(text) ~= "string" or text == "" then
            return false
        end
    end
    return count == #value
end

local function as_list(value)
    return type(value) == "table" and value or { value }
end

-- Check

local function check_fields(value, known, where, problem)
    for _, name in ipairs(sorted_keys(value)) do
        if not known[name] then
            problem(where .. ": unknown field '" .. name .. "'")
        end
    end
end

local function check_range(when, what, problem)
    local over, under = field(when[what .. "_over"]), field(when[what .. "_under"])
    if type(over) == "number" and type(under) == "number" and math.floor(over) + 1 >= under then
        problem(".when: no number is over " .. over .. " and under " .. under .. " (" .. what .. ")")
    end
end

local function check_when(when, problem)
    if type(when) ~= "table" then
        problem(".when: must be an object")
        return
    end
    check_fields(when, WHEN, ".when", problem)
    for _, name in ipairs(TEXTS) do
        if given(when[name]) and not is_texts(when[name]) then
            problem(".when." .. name .. ": must be a text or a list of texts, in which * stands for anything")
        end
    end
    for _, name in ipairs(NUMBERS) do
        local value = when[name]
        if given(value) and not (type(value) == "number" and value >= 0 and value < math.huge) then
            problem(".when." .. name .. ": must be a number of at least 0")
        end
    end
    check_range(when, "prompt_chars", problem)
    check_range(when, "messages", problem)
    if given(when.stream) and type(when.stream) ~= "boolean" then
        problem(".when.stream: must be true or false")
    end
end

local function check_labels(conditions, where, problem)
    if type(conditions) ~= "table" or #conditions > 0 then
        problem(where .. ": must be an object of label: condition")
        return
    end
    for _, name in ipairs(sorted_keys(conditions)) do
        local test, err = labels.compile(conditions[name])
        if not test then
            problem(where .. "." .. name .. ": " .. err)
        end
    end
end

local function labels_of(peer)
    return field(peer.labels) or {}
end

local function compile_labels(conditions)
    local tests = {}
    for name, condition in pairs(conditions) do
        tests[#tests + 1] = { name = name, holds = labels.compile(condition) }
    end
    return tests
end

--- Does a peer with these labels meet all conditions?
local function meets(tests, of_peer)
    for _, test in ipairs(tests) do
        if not test.holds(of_peer[test.name]) then
            return false
        end
    end
    return true
end

local function names_of(list)
    local out = {}
    for i, peer in ipairs(list) do
        out[i] = peer.name
    end
    return #out <= 8 and table.concat(out, ", ") or table.concat(out, ", ", 1, 8) .. " …"
end

--- Why no peer of the table meets the conditions: each is looked at alone.
local function why_unmet(conditions, list)
    for _, name in ipairs(sorted_keys(conditions)) do
        local condition, known, met = conditions[name], false, false
        local test = labels.compile(condition)
        for _, peer in ipairs(list) do
            local label = labels_of(peer)[name]
            known = known or given(label)
            met = met or test(label)
        end
        if not met then
            return not known and "no peer has the label '" .. name .. "'"
                or "none of " .. names_of(list) .. " has " .. labels.words(name, condition)
        end
    end
    return "none of " .. names_of(list) .. " meets all of require"
end

local function keep(list, wanted)
    local out = {}
    for _, peer in ipairs(list) do
        if wanted(peer) then
            out[#out + 1] = peer
        end
    end
    return out
end

local function serves(peer, patterns)
    for _, model in ipairs(peer.models) do
        if names.matches_model(patterns, model) then
            return true
        end
    end
    return false
end

--- The engine that the paths of a condition need: true for any, an engine's name, or false if there is no such path.
local function engine_for(paths)
    local patterns, found = names.compile(paths), false
    for _, route in pairs(surface.routes) do
        if route.kind == "inference" and names.matches(patterns, route.path) then
            if not route.engine then
                return true
            end
            found = route.engine
        end
    end
    return found
end

--- Say why this route can match no peer, if so.
local function check_peers(route, all, problem)
    local when = field(route.when) or {}
    local list, before = all
    if given(route.peers) then
        local wanted = {}
        for _, name in ipairs(route.peers) do
            wanted[name] = true
        end
        list = keep(list, function(peer) return wanted[peer.name] or wanted[peer.node] end)
    end
    if given(route.require) then
        local required = compile_labels(route.require)
        before, list = list, keep(list, function(peer) return meets(required, labels_of(peer)) end)
        if #list == 0 then
            problem(": can match no peer: " .. why_unmet(route.require, before))
            return
        end
    end
    local models = field(route.model) or field(when.model)
    if models then
        local patterns = names.compile(models)
        before, list = list, keep(list, function(peer) return serves(peer, patterns) end)
        if #list == 0 then
            problem(": can match no peer: none of " .. names_of(before) .. " serves '"
                .. table.concat(as_list(models), "' or '") .. "'")
            return
        end
    end
    local engine = given(when.path) and engine_for(when.path)
    if engine == false and given(when.path) then
        problem(".when.path: the balancer answers requests for inference on no such path")
    elseif type(engine) == "string" then
        before, list = list, keep(list, function(peer) return peer.engine == engine end)
        if #list == 0 then
            problem(": can match no peer: on this path only peers of engine " .. engine .. " answer, and none of "
                .. names_of(before) .. " is one")
        end
    end
end

local function check_route(route, where, all, known, problems)
    local before = #problems
    local function problem(text)
        problems[#problems + 1] = where .. text
    end
    check_fields(route, FIELDS, "", problem)
    if given(route.when) then
        check_when(route.when, problem)
    end
    for _, name in ipairs { "require", "prefer" } do
        if given(route[name]) then
            check_labels(route[name], "." .. name, problem)
        end
    end
    if given(route.peers) then
        if type(route.peers) ~= "table" or not is_texts(route.peers) then
            problem(".peers: must be a list of names of peers or nodes")
        else
            for _, name in ipairs(route.peers) do
                if not known.peers[name] then
                    problem(".peers: there is no peer or node '" .. name .. "'")
                end
            end
        end
    end
    for _, name in ipairs { "model", "fallback" } do
        local model = route[name]
        if given(model) and (type(model) ~= "string" or model == "") then
            problem("." .. name .. ": must be the name of a model")
        elseif given(model) and not names.resolve(known.models, model) then
            problem("." .. name .. ": no peer serves '" .. model .. "'")
        end
    end
    if #problems == before then
        check_peers(route, all, problem)
    end
end

--- Check a list of routes against the table's peers.
-- @param list routes as the table gives them
-- @param all the table's peers, valid
-- @param problems list that gets a text for each thing that is wrong: "routes[NAME]…: reason"
function M.check(list, all, problems)
    if #list > MAX_ROUTES then
        problems[#problems + 1] = "routes: more than " .. MAX_ROUTES
        return
    end
    local known, seen = { peers = {}, models = {} }, {}
    for _, peer in ipairs(all) do
        known.peers[peer.name], known.peers[peer.node] = true, true
        for _, model in ipairs(peer.models) do
            known.models[model] = true
        end
    end
    for i, route in ipairs(list) do
        if type(route) ~= "table" or #route > 0 then
            problems[#problems + 1] = "routes[" .. i .. "]: must be an object"
        elseif type(route.name) ~= "string" or #route.name > 200 or not route.name:find("^[%w][%w._:/@+-]*$") then
            problems[#problems + 1] = "routes[" .. (type(route.name) == "string" and route.name or i)
                .. "].name: must be a name of letters, digits and . _ - / : @ +"
        elseif seen[route.name] then
            problems[#problems + 1] = "routes[" .. route.name .. "].name: is used by two routes"
        else
            seen[route.name] = true
            check_route(route, "routes[" .. route.name .. "]", all, known, problems)
        end
    end
end

-- Compile

--- Ids of the peers that satisfy a function; nil if all do: then there is nothing to ask.
local function ids(view, wanted)
    local set, all = {}, true
    for _, peer in ipairs(view.peers) do
        if wanted(peer) then
            set[peer.id] = true
        else
            all = false
        end
    end
    return not all and set or nil
end

local function compile_route(route, view)
    local when = field(route.when) or {}
    local out = {
        name = route.name, sets = {}, stream = field(when.stream),
        over = field(when.prompt_chars_over), under = field(when.prompt_chars_under),
        messages_over = field(when.messages_over), messages_under = field(when.messages_under),
        models = given(when.model) and names.compile(when.model) or nil,
        paths = given(when.path) and names.compile(when.path) or nil,
        keys = given(when.key) and names.compile(when.key) or nil,
        model = given(route.model) and names.resolve(view.by_model, route.model) or nil,
        fallback = given(route.fallback) and names.resolve(view.by_model, route.fallback) or nil,
        aliases = given(route.model) and given(when.model) and as_list(when.model) or {},
    }
    local wanted
    if given(route.peers) then
        wanted = {}
        for _, name in ipairs(route.peers) do
            wanted[name] = true
        end
    end
    local required = compile_labels(field(route.require) or {})
    out.allowed = ids(view, function(peer)
        return (not wanted or wanted[peer.name] or wanted[peer.node]) and meets(required, peer.labels)
    end)
    if given(route.prefer) then
        local preferred = compile_labels(route.prefer)
        out.preferred = ids(view, function(peer) return meets(preferred, peer.labels) end)
    end
    return out
end

--- Make a table's routes ready for its peers.
-- @param list valid routes
-- @param view with peers and by_model
-- @return list of routes, with what match() needs beside them
function M.compile(list, view)
    local compiled = { known = view.by_model, of_model = {}, remembered = 0, prompt_chars = false, messages = false }
    for i, route in ipairs(list) do
        local each = compile_route(route, view)
        compiled[i] = each
        compiled.prompt_chars = compiled.prompt_chars or each.over ~= nil or each.under ~= nil
        compiled.messages = compiled.messages or each.messages_over ~= nil or each.messages_under ~= nil
    end
    return compiled
end

--- What match() must be told beyond the cheap facts.
-- @return {prompt_chars = boolean, messages = boolean}
function M.needs(compiled)
    return compiled
end

--- Names that a route turns into a model, spelt out, and that no peer serves: they are shown beside the models.
-- @return list of names
function M.aliases(compiled)
    local out, seen = {}, {}
    for _, route in ipairs(compiled) do
        for _, name in ipairs(route.aliases) do
            if not name:find("*", 1, true) and not seen[name] and not names.resolve(compiled.known, name) then
                seen[name] = true
                out[#out + 1] = name
            end
        end
    end
    return out
end

-- Match

--- The routes that a request for this model may match, in order.
local function routes_of(compiled, model)
    local found = compiled.of_model[model]
    if found then
        return found
    end
    found = {}
    local known = names.resolve(compiled.known, model) ~= nil
    for _, route in ipairs(compiled) do
        -- A route that says nothing about the model holds for those of the table: a misspelt name stays an error.
        local models = route.models
        if models and names.matches_model(models, model) or not models and known then
            found[#found + 1] = route
        end
    end
    if compiled.remembered < MAX_REMEMBERED then
        compiled.remembered = compiled.remembered + 1
        compiled.of_model[model] = found
    end
    return found
end

--- The first route that holds.
-- @param compiled from compile()
-- @param facts {model = name as asked, path, stream = boolean, key = name|nil, prompt_chars, messages = numbers if needs() says
--   so}
-- @return route {name, model = what the request becomes|nil, fallback = model|nil}, or nil
function M.match(compiled, facts)
    if #compiled == 0 then
        return nil
    end
    local found = routes_of(compiled, facts.model)
    for i = 1, #found do
        local route = found[i]
        if (route.stream == nil or route.stream == facts.stream)
            and (not route.over or facts.prompt_chars > route.over)
            and (not route.under or facts.prompt_chars < route.under)
            and (not route.messages_over or facts.messages > route.messages_over)
            and (not route.messages_under or facts.messages < route.messages_under)
            and (not route.paths or names.matches(route.paths, facts.path))
            and (not route.keys or facts.key and names.matches(route.keys, facts.key))
        then
            return route
        end
    end
    return nil
end

-- Peers

--- A short name for a list of peers, equal for equal lists in every worker: two sums of which each fits a double exactly.
local function name_of(list)
    local a, b = 7, 11
    for _, peer in ipairs(list) do
        local id = peer.id .. "\0"
        for i = 1, #id do
            local c = id:byte(i)
            a, b = (a * 8191 + c) % 67108859, (b * 131071 + c) % 67108837
        end
    end
    return string.format("%d.%07x%07x", #list, a, b)
end

local function make_set(view, route, model, engine)
    local set = { peers = {}, preferred = nil }
    local preferred, count = {}, 0
    for _, peer in ipairs(view.by_model[model]) do
        if (not engine or peer.engine == engine) and (not route or not route.allowed or route.allowed[peer.id]) then
            set.peers[#set.peers + 1] = peer
            if route and route.preferred and route.preferred[peer.id] then
                preferred[peer.id] = true
                count = count + 1
            end
        end
    end
    if count > 0 and count < #set.peers then
        set.preferred = preferred
    end
    -- With the model: what a peer lacks of one model must not hide those who wait for another.
    set.key = name_of(set.peers) .. " " .. model
    return set
end

--- The peers that may take a request; made once for each view, route, model and engine.
-- @param view
-- @param route from match(), or nil
-- @param model a model's name as the table has it
-- @param engine only peers of this engine; nil for any
-- @return {key = text, equal for equal lists of peers and models, peers = list in the table's order, may be empty,
--   preferred = {peer.id → true}, or nil if all are alike}; or nil if the table does not have the model
function M.peers(view, route, model, engine)
    local owner = route or view
    local sets = owner.sets
    if not sets then
        sets = {}
        owner.sets = sets
    end
    local of_engine = sets[engine or "any"]
    if not of_engine then
        of_engine = {}
        sets[engine or "any"] = of_engine
    end
    local set = of_engine[model]
    if not set and view.by_model[model] then
        set = make_set(view, route, model, engine)
        of_engine[model] = set
    end
    return set
end

return M
