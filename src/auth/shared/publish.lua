-- Writes records, if the keys stand where the writer thinks: all of them or none. `whole` puts them in the place of
-- every record there is. Answers 1, or 0 where the keys stand elsewhere.
local state, records, changes = KEYS[1], KEYS[2], KEYS[3]
local expected, whole, epoch, generation, pepper = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local stands = string.match(redis.call('GET', state) or '', '^%S+ %S+') or ''
if stands ~= expected then
    return 0
end
if whole == '1' then
    redis.call('DEL', records, changes)
end
for at = 6, #ARGV, 2 do
    redis.call('HSET', records, ARGV[at], ARGV[at + 1])
    redis.call('ZADD', changes, generation, ARGV[at])
end
redis.call('SET', state, table.concat({ epoch, generation, redis.call('ZCARD', changes), pepper }, ' '))
return 1
