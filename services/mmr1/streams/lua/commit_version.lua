-- ARGV: incarnation, number. The version every serving rollout server now holds.
local refused = stale(ARGV[1]); if refused then return refused end
redis.call('HSET', writer, 'number', ARGV[2])
return 1
