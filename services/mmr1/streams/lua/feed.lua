-- ARGV: incarnation, id, position, attempt, payload, force. Feeding the same id twice does nothing.
local refused = stale(ARGV[1]); if refused then return refused end
if redis.call('HEXISTS', items, ARGV[2]) == 1 then return 0 end
local position, following = tonumber(ARGV[3]), tonumber(redis.call('HGET', ledger, 'next_position') or '0')
if ARGV[4] == '0' and ARGV[6] == '0' and position < following then return 0 end
if position >= following then redis.call('HSET', ledger, 'next_position', position + 1) end
feed(ARGV[2], ARGV[5], 0)
redis.call('HINCRBY', ledger, 'fed', 1)
return 1
