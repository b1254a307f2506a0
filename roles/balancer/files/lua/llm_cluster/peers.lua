-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The routing table and the drain marks: validated, versioned, kept on disk, the same in every worker.
--
-- The shared dict holds both as JSON; a number (`version`) moves on with each change, and a worker rebuilds its view when it sees
-- another number. Files are written to a temporary name and renamed. validate() and build() are pure.

local cjson = require "cjson.safe"
local ffi = require "ffi"

local json = require "llm_cluster.json"
local routes = require "llm_cluster.routes"

local M = { resolve_model = require("llm_cluster.names").resolve }

ffi.cdef [[
int open(const char *path, int flags, ...);
int fsync(int fd);
int close(int fd);
]]

local DICT = "llm_state"
local EINVAL = 22
local state_dir

-- name = {default, least, most}; times in seconds
local LIMITS = {
    connect_timeout = { 1, 0.05, 60 },
    first_byte_timeout = { 300, 0.1, 86400 },
    stream_idle_timeout = { 30, 0.1, 86400 },
    max_body_bytes = { 16777216, 1024, 1073741824 },
    max_answer_bytes = { 67108864, 1024, 1073741824 },
    -- The queue.
    queue_timeout = { 60, 0, 86400 },
    queue_length = { 1000, 0, 100000 },
    queue_bytes = { 268435456, 0, 17179869184 },
    queue_window = { 16, 1, 256 }, -- oldest waiters of each set that a free slot chooses among
    -- Placement: how long a waiter lets others with a better prefix go first; how long a peer is thought to hold one; how many
    -- blocks of a conversation are compared.
    affinity_max_wait = { 2, 0, 3600 },
    affinity_ttl = { 600, 0, 86400 },
    affinity_blocks = { 128, 1, 1024 },
    -- Probes.
    probe_interval = { 2, 0.1, 3600 },
    probe_timeout = { 1, 0.05, 60 },
    probe_failures = { 2, 1, 100 },
    probe_successes = { 2, 1, 100 },
    canary_interval = { 0, 0, 86400 },
    canary_timeout = { 30, 0.1, 3600 },
    -- What requests find out: failures by different requests that eject; seconds in which they add up; seconds out after that or
    -- a flap, doubled up to the most; seconds over which a peer that comes back gets its slots one after the other; rest after
    -- 503/429 without Retry-After; the share of the others' speed below which a peer is slow.
    passive_failures = { 3, 1, 100 },
    passive_window = { 30, 1, 3600 },
    hold_down = { 4, 0, 3600 },
    hold_down_max = { 60, 0, 86400 },
    return_time = { 10, 0, 3600 },
    busy_rest = { 0.5, 0, 60 },
    slow_share = { 0.5, 0, 1 },
    -- Second tries after an answer of 5xx or silence, as a share of all requests.
    retry_budget = { 0.2, 0, 1 },
    -- How long an engine may go on working for a client that left before its slot counts as free.
    ending_timeout = { 60, 0, 3600 },
}
M.LIMITS = LIMITS

local ENGINES = { llama_cpp = true, ollama = true }
local POLICIES = { affinity = true, least_busy = true, weighted_round_robin = true }
local TABLE_FIELDS = {
    schema = true, default_model = true, require_key = true, policy = true, peers = true, routes = true, keys = true,
    limits = true,
}
local PEER_FIELDS = {
    name = true, node = true, engine = true, address = true, port = true, models = true, slots = true, weight = true,
    backup = true, labels = true,
}
local KEY_FIELDS = { name = true, sha256 = true, requests_per_minute = true, concurrent = true, models = true }

local function given(value)
    return value ~= nil and value ~= cjson.null
end

local function is_list(value)
    if type(value) ~= "table" then
        return false
    end
    local count = 0
    for _ in pairs(value) do
        count = count + 1
    end
    return count == #value
end

local function is_whole(value, least, most)
    return type(value) == "number" and value >= least and value <= most and value % 1 == 0
end

local function is_name(value)
    return type(value) == "string" and #value <= 200 and value:find("^[%w][%w._:/@+-]*$") ~= nil
end

local function is_texts(value)
    if not is_list(value) or #value == 0 then
        return false
    end
    for _, text in ipairs(value) do
        if type(text) ~= "string" or text == "" then
            return false
        end
    end
    return true
end

--- An IPv4 or IPv6 address: nginx resolves no names here, so that a dead resolver cannot stop serving.
local function is_address(value)
    if type(value) ~= "string" then
        return false
    end
    local a, b, c, d = value:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
    if a then
        return tonumber(a) < 256 and tonumber(b) < 256 and tonumber(c) < 256 and tonumber(d) < 256
    end
    return value:find(":", 1, true) ~= nil and value:find("^[%x:.]+$") ~= nil
end

local function unknown_fields(value, known, where, problems)
    for field in pairs(value) do
        if not known[field] then
            problems[#problems + 1] = where .. ": unknown field '" .. tostring(field) .. "'"
        end
    end
end

local function check_peer(peer, where, seen, problems)
    local function problem(text)
        problems[#problems + 1] = where .. text
    end
    if type(peer) ~= "table" then
        problem(": must be an object")
        return
    end
    unknown_fields(peer, PEER_FIELDS, where, problems)
    if not is_name(peer.name) then
        problem(".name: must be a name of letters, digits and . _ - / : @ +")
    elseif seen.names[peer.name] then
        problem(".name: '" .. peer.name .. "' is used by two peers")
    else
        seen.names[peer.name] = true
    end
    if not is_name(peer.node) then
        problem(".node: must be a name")
    end
    if not ENGINES[peer.engine] then
        problem(".engine: must be llama_cpp or ollama, not '" .. tostring(peer.engine) .. "'")
    end
    if not is_address(peer.address) then
        problem(".address: must be an IP address, not '" .. tostring(peer.address) .. "'")
    end
    if not is_whole(peer.port, 1, 65535) then
        problem(".port: must be a whole number from 1 to 65535")
    end
    local where_to = tostring(peer.address) .. " port " .. tostring(peer.port)
    if seen.addresses[where_to] then
        problem(": " .. where_to .. " is also peer '" .. seen.addresses[where_to] .. "'")
    end
    seen.addresses[where_to] = tostring(peer.name)
    if not is_list(peer.models) or #peer.models == 0 then
        problem(".models: must be a list of at least one name")
    else
        local names = {}
        for i, model in ipairs(peer.models) do
            if type(model) ~= "string" or model == "" or #model > 255 or model:find("%c") then
                problem(".models[" .. i .. "]: must be a name")
            elseif names[model] then
                problem(".models: '" .. model .. "' is listed twice")
            else
                names[model] = true
                seen.models[model] = true
            end
        end
    end
    if not is_whole(peer.slots, 1, 4096) then
        problem(".slots: must be a whole number from 1 to 4096")
    end
    if given(peer.weight) and not (type(peer.weight) == "number" and peer.weight > 0 and peer.weight <= 1000) then
        problem(".weight: must be a number above 0, at most 1000")
    end
    if given(peer.backup) and type(peer.backup) ~= "boolean" then
        problem(".backup: must be true or false")
    end
    if given(peer.labels) and type(peer.labels) ~= "table" then
        problem(".labels: must be an object")
    end
end

local function check_keys(keys, required, problems)
    if not is_list(keys) then
        problems[#problems + 1] = "keys: must be a list"
        return
    end
    local names = {}
    for i, key in ipairs(keys) do
        local where = "keys[" .. i .. "]"
        if type(key) ~= "table" then
            problems[#problems + 1] = where .. ": must be an object"
        else
            unknown_fields(key, KEY_FIELDS, where, problems)
            if not is_name(key.name) then
                problems[#problems + 1] = where .. ".name: must be a name"
            elseif names[key.name] then
                problems[#problems + 1] = where .. ".name: '" .. key.name .. "' is used twice"
            else
                names[key.name] = true
            end
            if type(key.sha256) ~= "string" or #key.sha256 ~= 64 or key.sha256:find("%X") then
                problems[#problems + 1] = where .. ".sha256: must be 64 hexadecimal digits"
            end
            for _, name in ipairs { "requests_per_minute", "concurrent" } do
                if given(key[name]) and not is_whole(key[name], 1, 1000000) then
                    problems[#problems + 1] = where .. "." .. name .. ": must be a whole number from 1 to 1000000"
                end
            end
            if given(key.models) and not is_texts(key.models) then
                problems[#problems + 1] = where .. ".models: must be a list of names, in which * stands for anything"
            end
        end
    end
    if required and #keys == 0 then
        problems[#problems + 1] = "keys: require_key is on and there is none, so nobody could ask anything"
    end
end

--- Check a decoded routing table.
-- @return a copy with every default filled in; or nil and a list of reasons, each naming the field
function M.validate(t)
    if type(t) ~= "table" or (#t > 0) then
        return nil, { "the table must be a JSON object" }
    end
    local problems = {}
    unknown_fields(t, TABLE_FIELDS, "table", problems)
    if t.schema ~= 1 then
        problems[#problems + 1] = "schema: must be 1"
    end
    local seen = { names = {}, addresses = {}, models = {} }
    if not is_list(t.peers) or #t.peers == 0 then
        problems[#problems + 1] = "peers: must be a list of at least one peer"
    else
        for i, peer in ipairs(t.peers) do
            local name = type(peer) == "table" and type(peer.name) == "string" and peer.name or (i - 1)
            check_peer(peer, "peers[" .. name .. "]", seen, problems)
        end
    end
    if given(t.require_key) and type(t.require_key) ~= "boolean" then
        problems[#problems + 1] = "require_key: must be true or false"
    end
    local require_key = not given(t.require_key) or t.require_key
    check_keys(given(t.keys) and t.keys or {}, require_key, problems)
    local default_model = given(t.default_model) and t.default_model or ""
    if type(default_model) ~= "string" then
        problems[#problems + 1] = "default_model: must be a string"
    elseif default_model ~= "" and not M.resolve_model(seen.models, default_model) then
        problems[#problems + 1] = "default_model: no peer serves '" .. default_model .. "'"
    end
    local policy = given(t.policy) and t.policy or "affinity"
    if not POLICIES[policy] then
        problems[#problems + 1] = "policy: must be affinity, least_busy or weighted_round_robin, not '" .. tostring(policy) .. "'"
    end
    local rules = given(t.routes) and t.routes or {}
    if not is_list(rules) then
        problems[#problems + 1] = "routes: must be a list"
    elseif #problems == 0 then -- they are checked against the peers, which must make sense for that
        routes.check(rules, t.peers, problems)
    end
    local limits = {}
    local asked = given(t.limits) and t.limits or {}
    if type(asked) ~= "table" then
        problems[#problems + 1] = "limits: must be an object"
    else
        unknown_fields(asked, LIMITS, "limits", problems)
        for name, range in pairs(LIMITS) do
            local value = asked[name]
            if not given(value) then
                value = range[1]
            elseif type(value) ~= "number" or value ~= value or value < range[2] or value > range[3] then
                problems[#problems + 1] = "limits." .. name .. ": must be a number from " .. range[2] .. " to " .. range[3]
            end
            limits[name] = value
        end
    end
    if #problems > 0 then
        table.sort(problems)
        return nil, problems
    end
    local peers, keys = {}, {}
    for i, peer in ipairs(t.peers) do
        peers[i] = {
            name = peer.name, node = peer.node, engine = peer.engine, address = peer.address, port = peer.port,
            models = peer.models, slots = peer.slots, weight = given(peer.weight) and peer.weight or 1,
            backup = given(peer.backup) and peer.backup or false, labels = given(peer.labels) and peer.labels or {},
        }
    end
    for i, key in ipairs(given(t.keys) and t.keys or {}) do
        keys[i] = {
            name = key.name, sha256 = key.sha256:lower(), models = given(key.models) and key.models or nil,
            requests_per_minute = given(key.requests_per_minute) and key.requests_per_minute or nil,
            concurrent = given(key.concurrent) and key.concurrent or nil,
        }
    end
    return {
        schema = 1, default_model = default_model, require_key = require_key, policy = policy, peers = peers, routes = rules,
        keys = keys, limits = limits,
    }
end

--- Is the peer drained?
function M.is_drained(view, peer)
    local drains = view.drains
    return (drains[peer.name] and next(drains[peer.name]) or drains[peer.node] and next(drains[peer.node])) ~= nil
end

--- An index over a valid table.
-- @param t from validate()
-- @param drains {name of a node or peer = {owner = {reason, since}}}
-- @return view {table, peers (each with id, key to everything that is kept about it), by_name, by_model {name = list of peers},
--   models (names in the table's order), default_model, engines (set), routes (compiled), limits, drains, drained {id = true}}
function M.build(t, drains)
    local view = {
        table = t, peers = {}, by_name = {}, by_model = {}, models = {}, engines = {}, limits = t.limits, drains = drains or {},
    }
    for i, entry in ipairs(t.peers) do
        local peer = setmetatable({ id = entry.name .. "@" .. entry.address .. ":" .. entry.port }, { __index = entry })
        peer.host = entry.address:find(":", 1, true) and "[" .. entry.address .. "]" or entry.address
        view.peers[i] = peer
        view.by_name[entry.name] = peer
        view.engines[entry.engine] = true
        for _, model in ipairs(entry.models) do
            if not view.by_model[model] then
                view.by_model[model] = {}
                view.models[#view.models + 1] = model
            end
            table.insert(view.by_model[model], peer)
        end
    end
    view.drained = {}
    for _, peer in ipairs(view.peers) do
        view.drained[peer.id] = M.is_drained(view, peer) or nil
    end
    view.routes = routes.compile(t.routes, view)
    if t.default_model ~= "" then
        view.default_model = M.resolve_model(view.by_model, t.default_model)
    end
    return view
end

--- Marks that hold this peer out of rotation: a list of {owner, reason, since}, empty if none.
function M.drains_of(view, peer)
    local marks = {}
    local names = peer.name == peer.node and { peer.name } or { peer.name, peer.node }
    for _, name in ipairs(names) do
        for owner, mark in pairs(view.drains[name] or {}) do
            marks[#marks + 1] = { owner = owner, reason = mark.reason, since = mark.since, name = name }
        end
    end
    table.sort(marks, function(a, b) return a.owner < b.owner end)
    return marks
end

-- From here on: what is kept.

local function read_file(name)
    local file = io.open(state_dir .. "/" .. name, "rb")
    if not file then
        return nil
    end
    local text = file:read("*a")
    file:close()
    return text
end

--- Is the file on the disk? A name must not come to stand for a file that a power cut leaves empty.
local function synced(path)
    local fd = ffi.C.open(path, 0)
    if fd < 0 then
        return false
    end
    local result = ffi.C.fsync(fd)
    ffi.C.close(fd)
    return result == 0 or ffi.errno() == EINVAL -- a file system that cannot
end

local function write_file(name, text)
    local path = state_dir .. "/" .. name
    local file, err = io.open(path .. ".tmp", "wb")
    if not file then
        return nil, err
    end
    local ok
    ok, err = file:write(text)
    -- A full disk often shows only here.
    local closed, why = file:close()
    if not (ok and closed and synced(path .. ".tmp")) then
        os.remove(path .. ".tmp")
        return nil, err or why or "it could not be written to the disk"
    end
    return os.rename(path .. ".tmp", path)
end

--- A valid table as JSON.
local function encode(t)
    return json.encode({
        schema = t.schema, default_model = t.default_model, require_key = t.require_key, peers = t.peers,
        policy = t.policy, routes = json.list(t.routes), keys = json.list(t.keys), limits = t.limits,
    })
end

--- A stored table whose limits are within today's bounds: after an upgrade with narrower ones it must still serve.
local function mended(t)
    local limits = type(t) == "table" and type(t.limits) == "table" and t.limits or {}
    for name, value in pairs(limits) do
        local range = LIMITS[name]
        if not range or type(value) ~= "number" or value < range[2] or value > range[3] then
            ngx.log(ngx.WARN, "routing.json: limits.", name, " is not used: ", tostring(value))
            limits[name] = nil
        end
    end
    return t
end

--- Load what an earlier life left behind. Called in the master, at start and at each reload; dicts survive a reload.
-- @param dir state directory
function M.init(dir)
    state_dir = dir
    local dict = ngx.shared[DICT]
    if not dict:get("routing") then
        local text = read_file("routing.json")
        if text then
            local valid, problems = M.validate(mended(cjson.decode(text)))
            if valid then
                dict:set("routing", encode(valid))
                dict:incr("routing_version", 1, 0)
            else
                ngx.log(ngx.ERR, "routing.json is not used: ", table.concat(problems, "; "))
            end
        end
    end
    if not dict:get("drains") then
        local drains = cjson.decode(read_file("drains.json") or "{}")
        if type(drains) == "table" then
            dict:set("drains", cjson.encode(drains))
        else
            ngx.log(ngx.ERR, "drains.json is not JSON: no peer is drained")
        end
    end
    dict:incr("version", 1, 0)
end

local cached, cached_version

--- The view in force.
-- @return view, or nil if no table was ever given
function M.view()
    local dict = ngx.shared[DICT]
    local version = dict:get("version")
    if version == cached_version then
        return cached
    end
    local text = dict:get("routing")
    if text then
        local t = cjson.decode(text)
        for name, range in pairs(LIMITS) do -- one that the version before a reload did not have
            t.limits[name] = t.limits[name] or range[1]
        end
        cached = M.build(t, cjson.decode(dict:get("drains") or "{}"))
        cached.version = dict:get("routing_version")
    end
    cached_version = version
    return cached
end

local function same(a, b)
    if type(a) ~= "table" or type(b) ~= "table" then
        return a == b
    end
    for key, value in pairs(a) do
        if not same(value, b[key]) then
            return false
        end
    end
    for key in pairs(b) do
        if a[key] == nil then
            return false
        end
    end
    return true
end

--- Put a routing table in force.
-- @param text JSON
-- @return {changed, version}; or nil, a list of reasons, and the HTTP status (400 refused, 500 could not be kept)
function M.put(text)
    local decoded, err = cjson.decode(text)
    if decoded == nil then
        return nil, { "not JSON: " .. tostring(err) }, 400
    end
    local valid, problems = M.validate(decoded)
    if not valid then
        return nil, problems, 400
    end
    local dict = ngx.shared[DICT]
    local old = cjson.decode(dict:get("routing") or "null")
    if same(old, valid) then
        return { changed = false, version = dict:get("routing_version") }
    end
    local encoded = encode(valid)
    local ok, why = write_file("routing.json", encoded)
    if ok then
        ok, why = dict:safe_set("routing", encoded)
    end
    if not ok then
        return nil, { "the table could not be kept: " .. tostring(why) }, 500
    end
    local version = dict:incr("routing_version", 1, 0)
    dict:incr("version", 1, 0)
    return { changed = true, version = version }
end

--- Set or clear one owner's drain mark on a node (all its peers) or one peer.
-- @param name of a node or a peer
-- @param owner string
-- @param mark {reason, since}, or nil to clear it
-- @return true|false (changed), or nil, the reason and the HTTP status
function M.mark(name, owner, mark)
    local view = M.view()
    local known = view and view.by_name[name] ~= nil
    for _, peer in ipairs(view and view.peers or {}) do
        known = known or peer.node == name
    end
    if not known and mark then
        return nil, "there is no node or peer '" .. name .. "'", 404
    end
    local dict = ngx.shared[DICT]
    local drains = cjson.decode(dict:get("drains") or "{}")
    local marks = drains[name] or {}
    if not known and not marks[owner] then
        return nil, "there is no node or peer '" .. name .. "'", 404
    end
    if mark and marks[owner] and marks[owner].reason == mark.reason or not mark and not marks[owner] then
        return false
    end
    marks[owner] = mark
    drains[name] = next(marks) and marks or nil
    local encoded = cjson.encode(drains)
    local ok, why = write_file("drains.json", encoded)
    if ok then
        ok, why = dict:safe_set("drains", encoded)
    end
    if not ok then
        return nil, "the mark could not be kept: " .. tostring(why), 500
    end
    dict:incr("version", 1, 0)
    return true
end

return M
