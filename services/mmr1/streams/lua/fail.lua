-- ARGV: consumer, entry, id, error. Sampling it failed, and its holder lives to say so: it waits again, and this counts.
local owner, deliveries = holder(prompts, 'rollout', ARGV[2])
if owner ~= ARGV[1] then return 0 end
release(ARGV[2], deliveries)
redis.call('HSET', errors, ARGV[3], ARGV[4])
return 1
