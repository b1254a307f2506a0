-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local A = "a@1:1"

--- A shared dict as far as slots.lua uses one.
local function fake_dict(clock)
    local values, ends = {}, {}
    local d = { values = values }
    function d.get(_, name)
        if ends[name] and ends[name] <= clock.now then
            values[name], ends[name] = nil, nil
        end
        return values[name]
    end
    function d.set(_, name, value)
        values[name], ends[name] = value, nil
        return true
    end
    function d.safe_set(_, name, value, ttl)
        if d.full and type(value) == "string" and #value > d.full then
            values[name] = nil -- as the real one: the old value goes first
            return nil, "no memory"
        end
        values[name], ends[name] = value, ttl and clock.now + ttl
        return true
    end
    function d.add(_, name, value)
        if d:get(name) ~= nil then
            return false, "exists"
        end
        return d:set(name, value)
    end
    function d.incr(_, name, by, init)
        local before = d:get(name) or init
        if not before then
            return nil, "not found"
        end
        values[name] = before + by
        return values[name]
    end
    function d.delete(_, name)
        values[name], ends[name] = nil, nil
    end
    function d.get_keys()
        local out = {}
        for name in pairs(values) do
            out[#out + 1] = name
        end
        return out
    end
    return d
end

describe("slots", function()
    local clock, dict, slots, workers, dead
    local pid = 10
    local real_ngx = _G.ngx

    --- A worker of its own, as far as there can be two of them here.
    local function start(its_pid)
        pid = its_pid
        package.loaded["llm_cluster.workers"], package.loaded["llm_cluster.slots"] = nil, nil
        workers = require "llm_cluster.workers"
        workers.alive = function(asked) return not dead[asked] end
        workers.register()
        return require "llm_cluster.slots"
    end

    before_each(function()
        clock, dead = { now = 1000 }, {}
        dict = fake_dict(clock)
        _G.ngx = {
            shared = { llm_slots = dict }, now = function() return clock.now end,
            worker = { pid = function() return pid end }, log = function() end, ERR = 3,
        }
        package.loaded["llm_cluster.proc"] = { start_time = function() end }
        slots = start(10)
    end)

    after_each(function()
        _G.ngx = real_ngx
        package.loaded["llm_cluster.slots"], package.loaded["llm_cluster.workers"] = nil, nil
        package.loaded["llm_cluster.proc"] = nil
    end)

    local function claim(id, suspect)
        assert.is_true(slots.take(A, 99, workers.pid, suspect))
        return slots.hold({ id = A }, { id = id, model = "m", key = "k" }, suspect)
    end

    local function counts()
        return { slots.busy(A), slots.ending(A), slots.suspects(A) }
    end

    it("are in use until they are given back", function()
        assert.is_true(slots.take(A, 1, workers.pid))
        assert.is_false(slots.take(A, 1, workers.pid))
        local first = slots.hold({ id = A }, { id = "r", model = "m" })
        assert.same({ 1, 0, 0 }, counts())
        slots.release(first)
        slots.release(first)
        assert.same({ 0, 0, 0 }, counts())
        assert.same({}, slots.in_flight())
    end)

    it("are apart for suspects that must be, whichever worker comes first", function()
        slots = start(11)
        assert.is_true(slots.take(A, 9, 10, true, true))
        assert.is_false(slots.take(A, 9, 11, true, true))
        assert.same({ 1, 0, 1 }, counts())
        assert.is_true(slots.take(A, 9, 11, true, false))
        assert.is_true(slots.take(A, 9, 11))
        assert.same({ 3, 0, 2 }, counts())
    end)

    it("end under nobody's name, until the engine has ended", function()
        local first, second = claim("r1"), claim("r2", true)
        assert.same({ 2, 0, 1 }, counts())
        assert.is_true(slots.let_end(dict, first, 1060))
        assert.is_true(slots.let_end(dict, second, 1070))
        assert.same({ 2, 2, 1 }, counts())
        assert.same({ { pid = 10, held = 0 } }, slots.by_worker { A })
        assert.same({
            { id = "r1", model = "m", key = "k", since = 1000, ending = true },
            { id = "r2", model = "m", key = "k", since = 1000, ending = true },
        }, slots.in_flight()[A])
        slots.release(first) -- it is not this worker's any more
        assert.same({ 2, 2, 1 }, counts())
        assert.equal(0, slots.free_ended(dict, A, 0))
        assert.equal(1, slots.free_ended(dict, A, 1))
        assert.same({ 1, 1, 1 }, counts())
        assert.equal(1, slots.free_ended(dict, A, 5))
        assert.same({ 0, 0, 0 }, counts())
        assert.same({}, slots.in_flight())
    end)

    it("end when their time is over, each its own, and at the latest without anybody's doing", function()
        slots.let_end(dict, claim("r1"), 1060)
        slots.let_end(dict, claim("r2"), 1070)
        clock.now = 1060
        assert.equal(1, slots.free_ended(dict, A, 0))
        assert.same({ 1, 1, 0 }, counts())
        clock.now = 1070
        assert.same({ 0, 0, 0 }, counts())
    end)

    it("that are ending outlive their worker; what else it held does not", function()
        slots.let_end(dict, claim("r1", true), 1060)
        claim("r2", true)
        assert.same({ 2, 1, 2 }, counts())
        dead[10] = true
        slots = start(11)
        assert.same({ 11 }, workers.list())
        assert.is_true(workers.counts(11))
        assert.is_false(workers.counts(10))
        assert.same({ 1, 1, 1 }, counts())
    end)

    it("are as before when there is no room to let them end", function()
        slots.let_end(dict, claim("r1"), 1060)
        local second = claim("r2")
        dict.full = 40
        assert.same({ nil, "no memory" }, { slots.let_end(dict, second, 1060) })
        assert.same({ 2, 1, 0 }, counts())
        slots.release(second)
        assert.same({ 1, 1, 0 }, counts())
        assert.equal("r1", slots.in_flight()[A][1].id)
    end)

    it("of an earlier worker with the same pid are not the new one's", function()
        dict:set("12:b:" .. A, 1) -- granted to it when it was swept already
        dict:set("12:s:" .. A, 1)
        dict:set("112:b:" .. A, 1)
        slots = start(12)
        assert.same({ 0, 0, 0 }, counts())
        assert.equal(1, dict:get("112:b:" .. A))
    end)
end)
