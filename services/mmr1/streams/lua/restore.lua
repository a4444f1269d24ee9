-- ARGV: incarnation, then ledger fields and values. Only into a Redis that has forgotten the run.
local refused = stale(ARGV[1]); if refused then return refused end
if redis.call('HEXISTS', ledger, 'fed') == 1 then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSET', ledger, ARGV[i], ARGV[i + 1]) end
return 1
