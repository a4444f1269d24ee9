-- ARGV: consumer, entry. The prompt waits again; this delivery is not counted as a death.
local owner, deliveries = holder(prompts, 'rollout', ARGV[2])
if owner ~= ARGV[1] then return 0 end
release(ARGV[2], deliveries - 1)
return 1
