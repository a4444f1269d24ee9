-- ARGV: consumer, entry, id, reason, detail. A prompt that cannot be sampled: kept in the graveyard with the reason.
if holder(prompts, 'rollout', ARGV[2]) ~= ARGV[1] then return 0 end
local found = redis.call('XRANGE', prompts, ARGV[2], ARGV[2])
bury(ARGV[2], ARGV[3], ARGV[4], ARGV[5], #found > 0 and field(found[1][2], 'payload') or '')
return 1
