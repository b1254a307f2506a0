-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Prometheus's text format, version 0.0.4. Pure.

local metrics = require "llm_cluster.metrics"

local M = {}

local PREFIX = "llm_cluster_"
local ESCAPES = { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }

local function number(value)
    return string.format("%.14g", value)
end

--- `{a="1",b="2"}`, or "" without labels.
local function labelled(names, values, extra)
    local out = {}
    for i, name in ipairs(names) do
        out[i] = name .. '="' .. tostring(values[i]):gsub('[\\"\n]', ESCAPES) .. '"'
    end
    out[#out + 1] = extra
    return #out > 0 and "{" .. table.concat(out, ",") .. "}" or ""
end

local function head(out, name, kind, help)
    out[#out + 1] = "# HELP " .. PREFIX .. name .. " " .. help
    out[#out + 1] = "# TYPE " .. PREFIX .. name .. " " .. kind
end

local function add_counter(out, family, entries)
    for _, entry in ipairs(entries) do
        out[#out + 1] = PREFIX .. family.name .. labelled(family.labels, { unpack(entry.parts, 2) }) .. " " .. number(entry.value)
    end
end

--- One histogram for each set of labels: cumulative buckets, sum, count.
local function add_histogram(out, family, entries)
    local by_labels, order = {}, {}
    for _, entry in ipairs(entries) do
        local values = { unpack(entry.parts, 2, 1 + #family.labels) }
        local id = table.concat(values, "\t")
        if not by_labels[id] then
            by_labels[id] = { values = values, sum = 0 }
            order[#order + 1] = id
        end
        local last = entry.parts[#entry.parts]
        by_labels[id][tonumber(last) or last] = entry.value
    end
    if #family.labels == 0 and #order == 0 then -- it exists, nothing was observed yet
        by_labels[""], order[1] = { values = {}, sum = 0 }, ""
    end
    for _, id in ipairs(order) do
        local one, count = by_labels[id], 0
        for i = 1, #metrics.BUCKETS + 1 do
            count = count + (one[i] or 0)
            local bound = metrics.BUCKETS[i] and number(metrics.BUCKETS[i]) or "+Inf"
            out[#out + 1] = PREFIX .. family.name .. "_bucket" .. labelled(family.labels, one.values, 'le="' .. bound .. '"')
                .. " " .. number(count)
        end
        local labels = labelled(family.labels, one.values)
        out[#out + 1] = PREFIX .. family.name .. "_sum" .. labels .. " " .. number(one.sum)
        out[#out + 1] = PREFIX .. family.name .. "_count" .. labels .. " " .. number(count)
    end
end

local function sorted(entries)
    table.sort(entries, function(a, b) return table.concat(a.parts, "\t") < table.concat(b.parts, "\t") end)
    return entries
end

--- What GET /metrics answers.
-- @param counted from metrics.read()
-- @param gauges list of {name, help, labels = list of names, values = list of {label values …, value = number}}
function M.text(counted, gauges)
    local out, names = {}, {}
    for name in pairs(metrics.FAMILIES) do
        names[#names + 1] = name
    end
    table.sort(names)
    for _, name in ipairs(names) do
        local family, entries = metrics.FAMILIES[name], sorted(counted[name] or {})
        head(out, family.name, family.type, family.help)
        local add = family.type == "histogram" and add_histogram or add_counter
        add(out, family, entries)
    end
    for _, gauge in ipairs(gauges) do
        head(out, gauge.name, "gauge", gauge.help)
        for _, entry in ipairs(gauge.values) do
            out[#out + 1] = PREFIX .. gauge.name .. labelled(gauge.labels, entry) .. " " .. number(entry.value)
        end
    end
    return table.concat(out, "\n") .. "\n"
end

return M
