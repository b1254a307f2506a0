-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local tickets = require "llm_cluster.tickets"

--- As much of a shared dict as tickets use, in a table.
-- luacheck: no self

local function new_dict()
    local values, lists = {}, {}
    local d = { values = values }
    function d:get(key) return values[key] end
    function d:set(key, value) values[key] = value end
    function d:safe_set(key, value)
        if self.full then
            return nil, "no memory"
        end
        values[key] = value
        return true
    end
    function d:delete(key) values[key], lists[key] = nil, nil end
    function d:llen(key) return #(lists[key] or {}) end
    function d:lpop(key) return table.remove(lists[key] or {}, 1) end
    function d:rpush(key, value)
        lists[key] = lists[key] or {}
        table.insert(lists[key], value)
        return #lists[key]
    end
    function d:lpush(key, value)
        lists[key] = lists[key] or {}
        table.insert(lists[key], 1, value)
        return #lists[key]
    end
    function d:get_keys()
        local out = {}
        for key in pairs(values) do
            out[#out + 1] = key
        end
        return out
    end
    return d
end

local SET = { key = "ab", peers = { { id = "a@1:1" }, { id = "b@1:2" } } }

local function want(fields)
    local out = { since = 100, model = "m:1", avoid = {} }
    for key, value in pairs(fields or {}) do
        out[key] = value
    end
    return out
end

local function numbers(d, most, accepts)
    local out, found = {}, {}
    tickets.oldest(d, SET.key, most or 16, accepts or function() return true end, out)
    for i, ticket in ipairs(out) do
        found[i] = ticket.number
    end
    return found
end

describe("tickets", function()
    local d

    before_each(function()
        d = new_dict()
    end)

    local function add(number, fields, again, pid)
        return tickets.add(d, SET, number, pid or 7, number + 100, want(fields), again)
    end

    it("keep what matching must know", function()
        local given = want {
            suspect = 99.5, avoid = { ["a@1:1"] = true }, preferred = { ["b@1:2"] = true }, holders = { ["b@1:2"] = 12 },
            saves = { ["b@1:2"] = 0.125 },
        }
        tickets.add(d, SET, 3, 7, 103, given)
        local out = {}
        tickets.oldest(d, SET.key, 16, function() return true end, out)
        assert.same({
            number = 3, pid = 7, serial = 103, since = 100, model = "m:1", suspect = 99.5, avoid = { ["a@1:1"] = 1 },
            preferred = { ["b@1:2"] = 1 }, holders = { ["b@1:2"] = 12 }, saves = { ["b@1:2"] = 0.125 },
        }, out[1])
    end)

    it("come oldest first, and stay when they are looked at", function()
        add(1)
        add(2, nil, false, 8)
        add(3)
        assert.same({ 1, 2, 3 }, numbers(d))
        assert.same({ 1, 2 }, numbers(d, 2))
        assert.same({ 1, 2, 3 }, numbers(d))
    end)

    it("that come back get their old place", function()
        add(2)
        add(5)
        add(9)
        for _, number in ipairs { 7, 1, 11 } do
            add(number, nil, true)
        end
        assert.same({ 1, 2, 5, 7, 9, 11 }, numbers(d))
    end)

    it("that are not accepted do not hide those behind them", function()
        for number = 1, 20 do
            add(number)
        end
        assert.same({ 19, 20 }, numbers(d, 16, function(ticket) return ticket.number > 18 end))
    end)

    it("that were given up are stepped over, and their entries go", function()
        add(1)
        add(2)
        tickets.remove(d, 7, 101)
        assert.same({ 2 }, numbers(d))
        assert.equal(1, d:llen("queue:ab"))
        tickets.remove(d, 7, 102)
        assert.equal(0, tickets.compact(d, SET.key))
        assert.is_true(tickets.is_empty(d))
        assert.is_nil(d.values["set:ab"])
    end)

    it("make their set known, and forget it with the last of them", function()
        assert.is_true(tickets.is_empty(d))
        add(1)
        tickets.add(d, { key = "b", peers = { SET.peers[2] } }, 2, 7, 102, want())
        assert.same({ "ab", "b" }, tickets.active_sets(d))
        tickets.remove(d, 7, 101)
        assert.same({ { peers = { "b@1:2" }, waiting = 1 } }, tickets.sets(d))
        assert.same({ "b" }, tickets.active_sets(d))
    end)

    it("of a worker that was killed leave what others lost to be found", function()
        add(1)
        add(2)
        d:lpop("queue:ab") -- as a worker that dies between taking an entry and putting it back
        local present = tickets.entries(d, SET.key)
        assert.same({ ["2:7:102"] = true }, present)
        add(1, nil, true)
        assert.same({ 1, 2 }, numbers(d))
    end)

    it("of an earlier place are not taken for the present one", function()
        tickets.add(d, SET, 4, 7, 1, want())
        tickets.remove(d, 7, 1)
        tickets.add(d, { key = "b", peers = { SET.peers[2] } }, 4, 7, 2, want())
        assert.same({}, numbers(d))
    end)

    it("that cannot be meant hide nobody behind them, however many they are", function()
        for number = 1, 100 do
            add(number)
        end
        local function from_90(ticket)
            return ticket.number >= 90
        end
        assert.same({}, numbers(d, 2, from_90))
        assert.same({ 90, 91 }, numbers(d, 2, function(ticket) return from_90(ticket) or nil end))
    end)

    it("that find no room leave nothing behind", function()
        d.full = true
        local ok, err = add(1)
        assert.is_nil(ok)
        assert.equal("no memory", err)
        assert.is_true(tickets.is_empty(d))
    end)

    -- Property: whatever is added, given up and looked at, the oldest come out in order, and nobody is lost.
    it("hold for random histories", function()
        math.randomseed(5)
        for _ = 1, 50 do
            d = new_dict()
            local waiting, taken, next_number = {}, {}, 0
            for _ = 1, 200 do
                local dice = math.random()
                if dice < 0.5 then
                    next_number = next_number + 1
                    add(next_number)
                    waiting[next_number] = true
                elseif dice < 0.7 and next(waiting) then
                    local number = numbers(d, math.random(1, 4))[1]
                    tickets.remove(d, 7, number + 100)
                    waiting[number] = nil
                    taken[#taken + 1] = number
                elseif dice < 0.8 and #taken > 0 then
                    local number = table.remove(taken, math.random(#taken))
                    add(number, nil, true)
                    waiting[number] = true
                else
                    tickets.tidy(d, SET.key, 0)
                end
                local expected = {}
                for number in pairs(waiting) do
                    expected[#expected + 1] = number
                end
                table.sort(expected)
                for i = #expected, 17, -1 do
                    expected[i] = nil
                end
                assert.same(expected, numbers(d))
            end
        end
    end)
end)
