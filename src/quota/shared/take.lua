-- Takes up to `want` tokens from a bucket: the generic cell rate algorithm, as `throttle.rs` has it. Times are
-- microseconds of the same clock; `full_at` is when the bucket will be full again. Answers how many, and the new `full_at`.
local function take(full_at, now, interval, depth, want)
    -- A clock that was set back leaves an empty bucket at worst, not one that stays empty until the wrong time comes.
    full_at = math.min(math.max(full_at, now), now + depth)
    -- The rounding of such numbers is far below a millionth of a token.
    local there = math.floor((now + depth - full_at) / interval + 1e-6)
    local granted = math.min(want, there)
    return granted, full_at + granted * interval
end
