-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local prefix = require "llm_cluster.prefix"
local request = require "llm_cluster.request"

local TTL = 600

--- A dict as nginx has it, with a clock of its own.
local function new_dict()
    local dict = { values = {}, ends = {}, now = 0, writes = 0, reads = 0 }
    function dict:get(key)
        self.reads = self.reads + 1
        return self:ttl(key) and self.values[key] or nil
    end
    function dict:set(key, value, ttl)
        self.writes = self.writes + 1
        self.values[key], self.ends[key] = value, self.now + ttl
    end
    function dict:ttl(key)
        local left = self.ends[key] and self.ends[key] - self.now or 0
        return left > 0 and left or nil
    end
    function dict:expire(key, ttl)
        self.writes = self.writes + 1
        self.ends[key] = self.now + ttl
    end
    return dict
end

local function new_view(count)
    local view = { peers = {} }
    for i = 1, count do
        view.peers[i] = setmetatable({ id = "n" .. i .. "@10.0.0." .. i .. ":8000" }, { __index = { name = "n" .. i } })
        view["n" .. i] = view.peers[i]
    end
    return view
end

local function message(role, text)
    return { role = role, content = text }
end

local function keys_of(body, model, path, most)
    local text = type(body) == "string" and body or cjson.encode(body)
    return prefix.keys(assert(request.parse(text, {})), model or "m", most or 128, path)
end

local function chat(...)
    return keys_of { messages = { ... } }
end

--- How many leading keys are equal.
local function common(a, b)
    local count = 0
    while a[count + 1] and a[count + 1] == b[count + 1] do
        count = count + 1
    end
    return count
end

describe("prefix.keys", function()
    local user, answer, more = message("user", "one"), message("assistant", "two"), message("user", "three")

    it("ends a block at each message", function()
        local first, second = chat(user), chat(user, answer, more)
        assert.equal(1, #first)
        assert.equal(3, #second)
        assert.equal(1, common(first, second))
        assert.equal(0, common(first, chat(more)))
        for _, key in ipairs(second) do
            assert.equal(8, #key)
        end
    end)

    it("ends a block at each 1024 bytes inside a message", function()
        local long = ("x"):rep(5000)
        local a = chat(message("user", long))
        assert.equal(5, #a)
        assert.equal(4, common(a, chat(message("user", long .. "more"))))
        assert.equal(0, common(a, chat(message("user", "y" .. long))))
    end)

    it("depends on the model, the tools and the system prompt", function()
        local body = { messages = { user } }
        assert.equal(0, common(keys_of(body, "a"), keys_of(body, "b")))
        for _, name in ipairs { "tools", "system", "instructions" } do
            local with = keys_of { messages = { user }, [name] = "x" }
            assert.equal(2, #with)
            assert.equal(1, with.shared)
            assert.equal(0, common(with, keys_of(body)))
        end
    end)

    it("counts what the operator says before the conversation", function()
        assert.equal(0, chat(user).shared)
        assert.equal(1, chat(message("system", "be brief"), user).shared)
        assert.equal(2, chat(message("system", "a"), message("developer", "b"), user, message("system", "c")).shared)
        assert.equal(3, chat(message("system", ("x"):rep(3000)), user).shared)
        assert.equal(0, chat(message("user", 'he said "role": "system"'), user).shared)
        assert.equal(1, keys_of('{"messages":[{"content":"x","role" : "system"},{"content":"y","role":"user"}]}').shared)
        assert.equal(0, keys_of('{"messages":[{"content":"x"},{"content":"y","role":"system"}]}').shared)
        assert.equal(1, keys_of { instructions = "a", input = "b" }.shared)
    end)

    it("reads every API's way to give a prompt", function()
        local long = ("x"):rep(1500)
        for _, body in ipairs {
            { prompt = long }, { input = long }, { prompt = { long } }, { messages = { message("user", long) } },
            { input = { message("user", long) } },
        } do
            assert.equal(2, #keys_of(body))
        end
        assert.equal(2, #keys_of { prompt = { "a", "b" } })
        assert.equal(1, #keys_of { prompt = { 1, 2, 3 } }, "tokens are one text")
        assert.equal(2, #keys_of { prompt = { { 1, 2 }, { 3 } } })
        local none = { "{}", '{"prompt":null}', '{"messages":[]}', '{"messages":1}', '{"prompt":""}', '{"messages":{}}' }
        for _, body in ipairs(none) do
            assert.equal(0, #keys_of(body), body)
        end
    end)

    it("keeps nothing where nothing is generated", function()
        assert.equal(0, #keys_of({ input = "x" }, "m", "/v1/embeddings"))
        assert.equal(1, #keys_of({ input = "x" }, "m", "/v1/responses"))
    end)

    it("stops after as many blocks as it is told", function()
        local long = {}
        for i = 1, 300 do
            long[i] = message("user", "turn " .. i)
        end
        local a = keys_of { messages = long }
        assert.equal(128, #a)
        long[301] = message("user", "another")
        assert.equal(128, common(a, keys_of { messages = long }))
        for _, most in ipairs { 1, 128, 1024 } do
            assert.equal(most, #keys_of({ prompt = ("x"):rep(2000000) }, "m", nil, most))
            assert.equal(math.min(most, 301), #keys_of({ messages = long }, "m", nil, most))
        end
        assert.equal(2, #keys_of({ messages = long }, "m", nil, 2.5))
    end)

    it("takes any bytes, in bounds and in time", function()
        local bodies = {
            '{"messages":' .. ("["):rep(199) .. ("]"):rep(199) .. "}",
            '{"messages":[,,,]}', '{"messages":[{"a" 1 "b"}]}', '{"messages":[1,true,nul]}', '{"messages":["\\u00"]}',
            '{"messages":[' .. ("{},"):rep(3000000) .. "{}]}",
            '{"messages":[' .. ("1,"):rep(5000000) .. "1]}",
            '{"messages":["' .. ("\\\\"):rep(5000000) .. '"]}',
            '{"messages":[{"content":"' .. ("x"):rep(10000000) .. '"}]}',
            '{"messages":[{"role":"system"' .. (" "):rep(5000000) .. "}]}",
        }
        for _, body in ipairs(bodies) do
            local parsed = assert(request.parse(body, {}))
            local started = os.clock()
            local keys = prefix.keys(parsed, "m", 128)
            assert.is_true(os.clock() - started < 0.02, body:sub(1, 40))
            assert.is_true(#keys <= 128)
        end
    end)

    -- Property: an appended message never changes the keys before it.
    it("has a conversation's keys at the start of its next turn's", function()
        math.randomseed(11)
        for _ = 1, 200 do
            local messages = {}
            local before
            for turn = 1, math.random(1, 12) do
                messages[turn] = message(turn % 2 == 1 and "user" or "assistant", ("w "):rep(math.random(0, 1500)))
                local keys = keys_of { model = "x", messages = messages, n = turn }
                if before then
                    assert.equal(#before, common(before, keys))
                end
                before = keys
            end
        end
    end)
end)

describe("prefix.pin", function()
    local function pin(body, session)
        return prefix.pin(request.parse(body, {}), session)
    end

    it("takes the header, then prompt_cache_key, then user", function()
        assert.equal("h", pin('{"prompt_cache_key":"k","user":"u"}', "h"))
        assert.equal("k", pin '{"user":"u","prompt_cache_key":"k"}')
        assert.equal("u", pin '{"user":"u"}')
        assert.equal("a\"b", pin '{"user":"a\\"b"}')
        assert.is_nil(pin "{}")
    end)

    it("leaves out what is empty, no text, or too long", function()
        assert.equal("u", pin('{"prompt_cache_key":null,"user":"u"}', ""))
        assert.equal("u", pin('{"prompt_cache_key":7,"user":"u"}', ("x"):rep(257)))
        assert.is_nil(pin('{"user":"' .. ("x"):rep(300) .. '"}'))
        assert.is_nil(pin '{"user":["u"]}')
        assert.is_nil(pin '{"user":"\\x"}')
    end)
end)

describe("prefix.holders", function()
    local view, dict, asked
    local system = message("system", ("You are helpful. "):rep(100)) -- two blocks

    before_each(function()
        view, dict, asked = new_view(20), new_dict(), 0
        _G.ngx = { shared = { llm_prefix = dict } }
    end)
    after_each(function()
        _G.ngx = nil
    end)

    local function holders(keys, pin)
        asked = asked + 1
        return prefix.holders(keys, pin, view, asked)
    end

    --- Ask on behalf of a request, then send it to this peer. Returns what holders() said.
    local function send(keys, peer, pin)
        local found = holders(keys, pin)
        prefix.remember(keys, pin, peer, TTL)
        return found
    end

    local function turns(count, first)
        local messages = { message("user", first or "hello") }
        for i = 2, count do
            messages[i] = message(i % 2 == 0 and "assistant" or "user", "turn " .. i)
        end
        return unpack(messages)
    end

    it("knows nobody at first", function()
        assert.same({}, { holders(chat(turns(3))) })
        assert.same({}, { holders(chat()) })
    end)

    it("finds who was sent the last turn, and how deep", function()
        send(chat(turns(5)), view.n1)
        assert.same({ [view.n1.id] = 5 }, (holders(chat(turns(7)))))
        send(chat(turns(7)), view.n1)
        assert.same({ [view.n1.id] = 7 }, (holders(chat(turns(9)))))
        assert.is_nil((holders(chat(turns(9, "other")))))
    end)

    it("tells the depths of several peers", function()
        send(chat(turns(3)), view.n1)
        send(chat(turns(5)), view.n2)
        send(chat(turns(9)), view.n3)
        local want = { [view.n1.id] = 3, [view.n2.id] = 5, [view.n3.id] = 9 }
        assert.same(want, (holders(chat(turns(11)))))
        send(chat(turns(9)), view.n1)
        want[view.n1.id] = 9
        assert.same(want, (holders(chat(turns(11)))))
    end)

    it("finds every depth of long conversations", function()
        for depth = 1, 127 do
            dict.values = {}
            send(chat(turns(depth)), view.n1)
            dict.reads = 0
            assert.same({ [view.n1.id] = depth }, (holders(chat(turns(128)))))
            assert.is_true(dict.reads <= 16)
        end
    end)

    it("does not let a system prompt decide", function()
        send(chat(system, message("user", "a")), view.n1)
        assert.is_nil(holders(chat(system, message("user", "b"))))
        local next_turn = chat(system, message("user", "a"), message("assistant", "x"), message("user", "b"))
        assert.same({ [view.n1.id] = 3 }, holders(next_turn))
    end)

    it("does not let a text decide from which many requests go on differently", function()
        local template = ("Translate the following to French. "):rep(60)
        for i = 1, 30 do
            local found = send(keys_of { prompt = template .. ("%04d "):format(i):rep(300) }, view.n1)
            assert.same(i >= 2 and i <= 9 and { [view.n1.id] = 2 } or nil, found, i)
        end
        -- Still, a conversation of its own is found beyond it.
        local mine = template .. ("mine "):rep(500)
        send(keys_of { prompt = mine }, view.n2)
        assert.same({ [view.n2.id] = 4 }, (holders(keys_of { prompt = mine .. ("more "):rep(500) })))
    end)

    it("lets a document decide of which less is asked than one peer's share", function()
        local document = ("Of this much is asked, in many ways. "):rep(60)
        local function ask(others)
            asked = asked + others
            return send(keys_of { prompt = document .. ("%04d "):format(asked):rep(300) }, view.n1) ~= nil
        end
        ask(0)
        for _ = 1, 1000 do
            assert.is_true(ask(20)) -- one of 21 requests, of 20 peers
        end
        for _ = 1, 200 do
            ask(10)
        end
        assert.is_false(ask(10)) -- one of 11: more than one peer's share
        for _ = 1, 200 do
            ask(40)
        end
        assert.is_true(ask(40))
    end)

    it("does not let a short text decide that is asked again and again, however seldom", function()
        for i = 1, 20 do
            asked = asked + 500
            assert.equal(i >= 2 and i <= 9, send(chat(turns(1)), view.n1) ~= nil)
        end
    end)

    it("does not take the turns of one conversation for many requests", function()
        for turn = 1, 60, 2 do
            local own = send(chat(turns(turn)), view.n1)
            if turn > 1 then
                assert.same({ [view.n1.id] = turn - 2 }, own)
            end
        end
    end)

    it("does not let one request decide that is sent again and again, nor writes it all again", function()
        for i = 1, 20 do
            assert.equal(i >= 2 and i <= 9, send(chat(turns(1)), view.n1) ~= nil)
        end
        dict.writes = 0
        send(chat(turns(1)), view.n1)
        assert.equal(1, dict.writes) -- one match more
    end)

    it("keeps apart what is asked of different models", function()
        send(keys_of({ prompt = "x" }, "a"), view.n1)
        assert.is_nil((holders(keys_of({ prompt = "x" }, "b"))))
    end)

    it("puts a pinned peer first", function()
        send(chat(turns(3)), view.n1)
        send(chat(turns(1, "other")), view.n2, "session-1")
        assert.same({ [view.n1.id] = 3, [view.n2.id] = 6 }, (holders(chat(turns(5)), "session-1")))
        assert.same({ [view.n1.id] = 3 }, (holders(chat(turns(5)), "session-2")))
        assert.same({ [view.n2.id] = 1 }, (holders(chat(), "session-1")))
        -- The pin moves with the request, and remembers what the new peer holds.
        send(chat(turns(5)), view.n3, "session-1")
        assert.same({ [view.n1.id] = 3, [view.n3.id] = 8 }, (holders(chat(turns(7)), "session-1")))
        assert.same({ [view.n1.id] = 3, [view.n3.id] = 5 }, (holders(chat(turns(7)))))
    end)

    it("writes a pinned peer's blocks too", function()
        send(chat(turns(1)), view.n1, "p")
        send(chat(turns(3)), view.n1, "p")
        assert.same({ [view.n1.id] = 3 }, (holders(chat(turns(3)))))
    end)

    it("forgets peers that are no longer there", function()
        send(chat(turns(3)), view.n20, "p")
        view = new_view(5)
        assert.same({}, { holders(chat(turns(3)), "p") })
    end)

    it("keeps at most 16 peers for a block, the newest", function()
        for i = 1, 20 do
            send(chat(turns(2)), view["n" .. i])
        end
        local keys = chat(turns(2))
        holders(keys)
        for i = 1, 20 do
            assert.equal(i > 4 and 2 or nil, keys.depths[view["n" .. i].id])
        end
        for _, value in pairs(dict.values) do
            assert.is_true(#value <= 69)
        end
    end)

    it("forgets after the time given, but not what is in use", function()
        send(chat(turns(3)), view.n1)
        send(chat(turns(1, "idle")), view.n2)
        for turn = 5, 41, 2 do
            dict.now = dict.now + 100
            assert.same({ [view.n1.id] = turn - 2 }, (send(chat(turns(turn)), view.n1)))
        end
        assert.is_nil((holders(chat(turns(1, "idle")))))
        dict.now = dict.now + TTL + 1
        assert.same({}, { holders(chat(turns(43))) })
    end)

    it("keeps the old part of a conversation that goes on slowly", function()
        local first = ("a"):rep(20 * 1024)
        local function at(time, ...)
            dict.now = time
            return send(chat(message("user", first), ...), view.n1)
        end
        at(0)
        local second = message("assistant", ("b"):rep(4 * 1024))
        assert.is_table(at(400, second))
        assert.is_table(at(800, second, message("user", ("c"):rep(16 * 1024))))
    end)

    it("names a peer once for a block", function()
        for depth = 1, 9, 2 do
            send(chat(turns(depth)), view["n" .. depth])
        end
        -- More depths than are looked for: that of n1 isn't known, and yet it is there.
        local keys = chat(turns(11))
        assert.is_nil(holders(keys)[view.n1.id])
        prefix.remember(keys, nil, view.n1, TTL)
        for _, value in pairs(dict.values) do
            local seen = {}
            for i = 6, #value, 4 do
                local tag = value:sub(i, i + 3)
                assert.is_nil(seen[tag])
                seen[tag] = true
            end
        end
    end)

    it("keeps nothing with a time of 0", function()
        prefix.remember(chat(turns(3)), "p", view.n1, 0)
        assert.equal(0, dict.writes)
    end)

    it("lives with blocks that were evicted", function()
        math.randomseed(5)
        for _ = 1, 300 do
            send(chat(turns(math.random(1, 40))), view["n" .. math.random(1, 4)])
            for key in pairs(dict.values) do
                if math.random() < 0.2 then
                    dict.values[key], dict.ends[key] = nil, nil
                end
            end
            local keys = chat(turns(40))
            for _, depth in pairs(holders(keys) or {}) do
                assert.is_true(depth >= 1 and depth <= 40)
            end
            prefix.remember(keys, nil, view.n5, TTL)
            local again = chat(turns(40))
            holders(again)
            assert.equal(40, again.depths[view.n5.id])
        end
    end)
end)
