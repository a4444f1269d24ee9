-- ARGV: incarnation. With a durable checkpoint: before the oldest pending place all is over, and its ids need no memory.
local refused = stale(ARGV[1]); if refused then return refused end
local oldest = tonumber(redis.call('HGET', ledger, 'next_position') or '0')
for _, id in ipairs(redis.call('HKEYS', items)) do oldest = math.min(oldest, position_of(id)) end
redis.call('HSET', ledger, 'settled_before', oldest)
return redis.call('ZREMRANGEBYSCORE', settled, '-inf', '(' .. oldest)
