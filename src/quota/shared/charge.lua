-- One gateway says what it holds of one key's window and what it wants on top. The answer is what it holds now.
--
-- What is written is a state, not a change: the same call twice, or a call whose answer was lost, charges once. A call
-- that comes after a later one of the same gateway is ignored.
--
--   given        what all gateways hold, and `unclaimed`
--   unclaimed    what was given before this store lost its memory, as a gateway remembers, and no gateway has claimed
--   held:<g>     what gateway g holds: used there, or set aside there
--   call:<g>     the number of its last call
local key = KEYS[1]
local period, amount, lifetime, offset = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local gateway, call = ARGV[5], tonumber(ARGV[6])
-- The gateway's window, what of it this store has confirmed, what it holds, and what it saw given in all.
local its_window, confirmed, held, seen = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local want = tonumber(ARGV[11])

local time = redis.call('TIME')
local window = window_of(period, tonumber(time[1]) - offset)
local row = redis.call('HMGET', key, 'window', 'given', 'unclaimed', 'held:' .. gateway, 'call:' .. gateway)
local last = tonumber(row[1] or '')
-- A clock that was set back a little does not open a past window again.
if last and last - 1 == window then
    window = last
end
local given, unclaimed, mine = 0, 0, 0
if last == window then
    given, unclaimed, mine = tonumber(row[2]), tonumber(row[3]), tonumber(row[4] or '0')
    if call <= tonumber(row[5] or '0') then
        return redis.error_reply('STALE a later call of this gateway was here before')
    end
elseif last then
    redis.call('DEL', key)
end

local base = mine
-- One that was told of no window speaks of this one.
if its_window == window or not its_window then
    if mine < confirmed then
        -- Restarted empty, or a replica that lagged: the gateway's memory is the better one.
        local lost = confirmed - mine
        local claimed = math.min(lost, unclaimed)
        unclaimed = unclaimed - claimed
        given = given + lost - claimed
        mine = confirmed
        if given < seen then
            unclaimed = unclaimed + seen - given
            given = seen
        end
    end
    base = held
    if mine < held then
        -- Lent while this store could not be asked; it is used, whether there was enough or not.
        given = given + held - mine
        mine = held
    end
end
local wanted = base + want
if mine < wanted then
    local more = math.min(wanted - mine, math.max(amount - given, 0))
    given = given + more
    mine = mine + more
else
    -- Given back, or given in an answer that was lost.
    given = given - (mine - wanted)
    mine = wanted
end

-- In full: what Lua writes by itself has fourteen digits.
local function digits(number)
    return string.format('%.0f', number)
end
redis.call('HSET', key, 'window', digits(window), 'given', digits(given), 'unclaimed', digits(unclaimed),
    'held:' .. gateway, digits(mine), 'call:' .. gateway, digits(call))
redis.call('EXPIRE', key, lifetime)
return { window, given, mine, mine - base, tonumber(time[1]), tonumber(time[2]) }
