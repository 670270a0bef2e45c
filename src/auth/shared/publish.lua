-- Writes records, if the keys stand where the writer thinks: all of them or none. `whole` puts them in the place of
-- every record there is. Answers 1, or 0 where the keys stand elsewhere.
local state, records, changes, stamps = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local expected, whole, stamp, generation, pepper = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
-- How many changes a copy may have missed and still be told what it missed; above that it takes all anew.
local remembered = 10000
local stands = string.match(redis.call('GET', state) or '', '^%S+ %S+') or ''
if stands ~= expected then
    return 0
end
if whole == '1' then
    redis.call('DEL', records, changes, stamps)
end
for at = 6, #ARGV, 2 do
    redis.call('HSET', records, ARGV[at], ARGV[at + 1])
    redis.call('ZADD', changes, generation, ARGV[at])
end
redis.call('HSET', stamps, generation, stamp)
redis.call('HDEL', stamps, string.format('%.0f', tonumber(generation) - remembered))
redis.call('SET', state, table.concat({ stamp, generation, redis.call('ZCARD', changes), pepper }, ' '))
return 1
