-- One gateway asks for tokens of a throttle. The answer is how many it has now, and the microseconds until the bucket is
-- full again. An answer that is lost loses its tokens: nothing is admitted on them, and the rate brings new ones.
local key = KEYS[1]
local interval, depth, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local row = redis.call('HMGET', key, 'since', 'full_at')
-- Counted from the row's beginning: a Lua number has no room for fractions of a microsecond since the epoch.
local since = tonumber(row[1] or time[1])
local now = (tonumber(time[1]) - since) * 1000000 + tonumber(time[2])
local granted, full_at = take(tonumber(row[2] or '0'), now, interval, depth, want)
if granted > 0 then
    redis.call('HSET', key, 'since', string.format('%.0f', since), 'full_at', string.format('%.17g', full_at))
    -- A full bucket is the same as none.
    redis.call('EXPIRE', key, string.format('%.0f', math.ceil((full_at - now) / 1000000) + 1))
end
return { granted, math.floor(full_at - now) }
