-- Copyright: (c) 2026, llm.cluster contributors
-- SPDX-License-Identifier: GPL-3.0-or-later

--- The retry budget: second tries may not become a storm. Each request earns a part of one, up to a reserve that lets a quiet
-- cluster try again at all (Finagle's RetryBudget). Kept per worker: each sees a fair sample of the requests.

local M = {}

local RESERVE = 10           -- second tries

local credit = RESERVE

--- A request came.
-- @param share second tries that one request is worth
function M.earn(share)
    credit = math.min(RESERVE, credit + share)
end

--- Use one second try. @return false if there is none left
function M.spend()
    if credit < 1 then
        return false
    end
    credit = credit - 1
    return true
end

return M
