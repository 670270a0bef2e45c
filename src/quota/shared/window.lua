-- The number of the window that a second of the epoch is in, as `calendar.rs` counts them. UTC; weeks begin on Monday.
local function window_of(period, second)
    local day = math.floor(second / 86400)
    if period == 'day' then
        return day
    elseif period == 'week' then
        return math.floor((day + 3) / 7)
    end
    -- Years that begin in March have their leap day at the end, so every month begins at a fixed day of its year.
    local march = day + 719468
    local era = math.floor(march / 146097)
    local day_of_era = march - era * 146097
    local leaps = math.floor(day_of_era / 1460) - math.floor(day_of_era / 36524) + math.floor(day_of_era / 146096)
    local year = math.floor((day_of_era - leaps) / 365)
    local day_of_year = day_of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
    local month = math.floor((5 * day_of_year + 2) / 153) + 2
    return (era * 400 + year) * 12 + month
end
