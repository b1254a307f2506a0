-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- Names with `*`, which stands for any text, also none. Nothing else is special. Pure.

local M = {}

local STAR = ("*"):byte()

--- Does the text match? Never slower than length of pattern times length of text, whatever they hold.
function M.match(pattern, text)
    local p, t = 1, 1
    local star, from -- where to go on when the star takes one more byte
    while t <= #text do
        local wanted = pattern:byte(p)
        if wanted == STAR then
            star, from = p, t
            p = p + 1
        elseif wanted == text:byte(t) then
            p, t = p + 1, t + 1
        elseif star then
            from = from + 1
            p, t = star + 1, from
        else
            return false
        end
    end
    while pattern:byte(p) == STAR do
        p = p + 1
    end
    return p > #pattern
end

--- Does the text match one of the patterns?
function M.any(patterns, text)
    for i = 1, #patterns do
        if M.match(patterns[i], text) then
            return true
        end
    end
    return false
end

return M
