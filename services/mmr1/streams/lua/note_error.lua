-- ARGV: consumer, entry, id, error. What ended a holder that could still say so: told if the prompt has to be buried.
if holder(prompts, 'rollout', ARGV[2]) ~= ARGV[1] then return 0 end
redis.call('HSET', errors, ARGV[3], ARGV[4])
return 1
