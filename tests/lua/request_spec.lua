-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

local cjson = require "cjson.safe"
local request = require "llm_cluster.request"

describe("request.scan", function()
    local good = {
        ["{}"] = {},
        [" \r\n\t{ } \n"] = {},
        ['{"model":"m"}'] = { model = '"m"' },
        ['{ "a" : 1 , "b" : [ {"c":[]} ] }'] = { a = "1", b = '[ {"c":[]} ]' },
        ['{"a":-1.5e+10,"b":true,"c":false,"d":null}'] = { a = "-1.5e+10", b = "true", c = "false", d = "null" },
        ['{"a":"\\"}{\\\\","b":{"x":"]"}}'] = { a = '"\\"}{\\\\"', b = '{"x":"]"}' },
        ['{"a":"\\\\\\\\","b":"\\\\\\""}'] = { a = '"\\\\\\\\"', b = '"\\\\\\""' },
        ['{"a":{"a":1,"a":2}}'] = { a = '{"a":1,"a":2}' },
        ['{"m":"é😀"}'] = { m = '"é😀"' },
    }
    for body, want in pairs(good) do
        it("finds the values of " .. body, function()
            local fields, brace = request.scan(body)
            assert.is_table(fields, brace)
            assert.equal("{", body:sub(brace, brace))
            local got = {}
            for key, field in pairs(fields) do
                got[key] = body:sub(field.first, field.last)
            end
            assert.same(want, got)
        end)
    end

    local bad = {
        "", " ", "null", "[]", "1", '"x"', "{", "}", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', '{"a":1}}', '{"a":1}{}',
        '{"a":1} x', '{"a":"}', '{"a":"\\"}', '{"a":[1}', '{"a":[}]', '{"a":{]}', '{"a":tru}', '{"a":truefalse}', '{"a":01x}',
        '{"a":+}',
        '{"a":nul}', "{'a':1}", '{a:1}', '{"a" 1}', '{"a":1 "b":2}', '{"a":1,,"b":2}',
        '{,"a":1}', '{"a":@}', '{"a":[@]}',
        '{"a":1,"a":2}', '{"a":1,"A":2}', '{"Model":"m"}', '{"STREAM":true}', '{"\\u0061":1}', '{"é":1}', '{"a\tb":1}',
        "\239\187\191{}", '{"a":\0}', '{"a":1}\0', '{"a":.}', '{"a":-}',
    }
    for _, body in ipairs(bad) do
        it("refuses " .. body:gsub("[%c\128-\255]", "?"), function()
            local fields, err = request.scan(body)
            assert.is_nil(fields)
            assert.is_string(err)
        end)
    end

    it("caps depth, keys and names", function()
        local function nested(n)
            return '{"a":' .. ("["):rep(n) .. ("]"):rep(n) .. "}"
        end
        assert.is_table((request.scan(nested(request.MAX_DEPTH - 1))))
        assert.is_nil((request.scan(nested(request.MAX_DEPTH))))
        assert.is_nil((request.scan('{"a":' .. ("["):rep(10000000))))
        local keys = {}
        for i = 1, 257 do
            keys[i] = '"k' .. i .. '":1'
        end
        assert.is_nil((request.scan("{" .. table.concat(keys, ",") .. "}")))
        keys[257] = nil
        assert.is_table((request.scan("{" .. table.concat(keys, ",") .. "}")))
        assert.is_nil((request.scan('{"' .. ("k"):rep(300) .. '":1}')))
    end)

    -- Property: it accepts every object that cjson writes and finds the values that cjson reads.
    it("agrees with a decoder on random objects", function()
        math.randomseed(7)
        local function value(depth)
            local kind = math.random(depth > 3 and 4 or 6)
            if kind == 1 then
                return math.random() * 1e6
            elseif kind == 2 then
                return math.random() < 0.5
            elseif kind == 3 then
                return cjson.null
            elseif kind == 4 then
                local bytes = {}
                for i = 1, math.random(0, 12) do
                    bytes[i] = string.char(({ 34, 92, 123, 125, 91, 93, 44, 58, 10, 97, 195 })[math.random(11)])
                end
                return table.concat(bytes)
            end
            local t = {}
            for i = 1, math.random(0, 4) do
                t[kind == 5 and i or "k" .. i] = value(depth + 1)
            end
            return t
        end
        for _ = 1, 2000 do
            local object = {}
            for i = 1, math.random(0, 6) do
                object["key" .. i] = value(1)
            end
            local body = cjson.encode(object)
            local fields, err = request.scan(body)
            assert.is_table(fields, tostring(err) .. " in " .. body)
            for key, field in pairs(fields) do
                local text = body:sub(field.first, field.last)
                assert.same(cjson.decode(body)[key], cjson.decode("[" .. text .. "]")[1])
            end
            -- and refuses it as soon as one byte of its end is missing
            assert.is_nil((request.scan(body:sub(1, -2))))
        end
    end)

    it("never fails on random bytes", function()
        math.randomseed(8)
        local alphabet = { "{", "}", "[", "]", '"', "\\", ",", ":", "1", "t", "true", " ", '"a"', "\0", "\255" }
        for _ = 1, 20000 do
            local parts = { "{" }
            for i = 2, math.random(2, 14) do
                parts[i] = alphabet[math.random(#alphabet)]
            end
            local body = table.concat(parts)
            local fields = request.scan(body)
            if fields and not body:find("[%z\255]") then
                for _, field in pairs(fields) do
                    assert.is_true(field.first <= field.last and field.last < #body)
                end
            end
        end
    end)
end)

describe("request.parse", function()
    it("reads model and stream", function()
        local got = request.parse('{"stream":true,"model":"a\\/b:\\u0063"}', {})
        assert.equal("a/b:c", got.model)
        assert.is_true(got.stream)
    end)

    it("takes the API's default for stream", function()
        assert.is_false(request.parse("{}", {}).stream)
        assert.is_true(request.parse("{}", { stream_default = true }).stream)
        assert.is_true(request.parse('{"stream":null}', { stream_default = true }).stream)
        assert.is_false(request.parse('{"stream":false}', { stream_default = true }).stream)
    end)

    it("takes the model's other key where one is allowed", function()
        assert.equal("m", request.parse('{"name":"m"}', { name_key = "name" }).model)
        assert.is_nil(request.parse('{"name":"m"}', {}).model)
        assert.equal("a", request.parse('{"name":"m","model":"a"}', { name_key = "name" }).model)
    end)

    it("names the parameter at fault", function()
        for body, param in pairs { ['{"model":1}'] = "model", ['{"stream":1}'] = "stream", ['{"model":"\\x"}'] = "model",
            ['{"model":"a\nb"}'] = "model" } do
            local got, words, at = request.parse(body, {})
            assert.is_nil(got)
            assert.is_string(words)
            assert.equal(param, at)
        end
    end)
end)

describe("request.parse", function()
    it("takes no model name that is not UTF-8", function()
        assert.is_nil((request.parse('{"model":"a\255"}', {})))
        assert.is_nil((request.parse('{"model":"a\195"}', {})))
        assert.equal("\195\169\226\130\172\240\159\152\128",
            request.parse('{"model":"\195\169\226\130\172\240\159\152\128"}', {}).model)
    end)
end)

describe("request.parse, on text", function()
    -- Every kind of character at its bounds, and what is just outside (Unicode 15, table 3-7).
    local good = {
        "\1", "\127", "\194\128", "\223\191", "\224\160\128", "\237\159\191", "\238\128\128", "\239\191\191",
        "\240\144\128\128", "\244\143\191\191",
    }
    local bad = {
        "\128", "\191", "\192\128", "\193\191", "\194", "\194a", "\224\159\191", "\224\160", "\237\160\128",
        "\240\143\191\191", "\240\144\128", "\244\144\128\128", "\245\128\128\128", "\255", "\226\130a",
    }

    it("takes UTF-8 at any place and refuses everything else", function()
        for before = 0, 70 do
            for _, text in ipairs(good) do
                assert.is_table((request.parse('{"a":"' .. ("x"):rep(before) .. text .. '"}', {})))
            end
            for _, text in ipairs(bad) do
                local got, words = request.parse('{"a":"' .. ("x"):rep(before) .. text .. ("y"):rep(70 - before) .. '"}', {})
                assert.is_nil(got)
                assert.equal("The body is not UTF-8 at byte " .. (before + 7) .. ".", words)
            end
        end
    end)
end)

describe("request.pieces", function()
    it("keeps a client from saying how long a model stays", function()
        local function body(text, model)
            return table.concat(request.pieces(request.parse(text, {}), model))
        end
        assert.equal('{"keep_alive":null,"model":"m"}', body('{"keep_alive":0,"model":"m"}'))
        assert.equal('{"model":"x", "keep_alive": null }', body('{"model":"m", "keep_alive": "0s" }', "x"))
        assert.equal('{"model":"x","keep_alive":null}', body('{"keep_alive":{"a":[1]}}', "x"))
        assert.is_nil((request.parse('{"model":"m","Keep_Alive":0}', {})))
    end)

    local function spliced(body, model)
        return table.concat(request.pieces(request.parse(body, {}), model))
    end

    it("puts the model in and changes no other byte", function()
        assert.equal('{"model":"x"}', spliced("{}", "x"))
        assert.equal(' { "model":"x", }', (spliced(' { "a":1 }', "x"):gsub('"model":"x", "a":1', ' "model":"x",')))
        assert.equal('{"model":"x","a":1.10}', spliced('{"a":1.10}', "x"))
        assert.equal('{"a":1,"model": "x" ,"b":[]}', spliced('{"a":1,"model": null ,"b":[]}', "x"))
        assert.equal('{"model":"a/b \\"q\\""}', spliced("{}", 'a/b "q"'))
    end)

    it("leaves the body alone without a model to put in", function()
        assert.equal('{"a" : 1}', spliced('{"a" : 1}', nil))
    end)
end)
