-- ARGV: server, entry. The prompt goes back to the end of the queue; this delivery is not counted as a crash.
local owner, deliveries = holder(prompts, 'rollout', ARGV[2])
if owner ~= ARGV[1] then return 0 end
local found = redis.call('XRANGE', prompts, ARGV[2], ARGV[2])
remove(prompts, 'rollout', ARGV[2])
if #found == 0 then return 0 end
local fields = found[1][2]
feed(field(fields, 'id'), field(fields, 'payload'), tonumber(field(fields, 'crashes')) + deliveries - 1)
return 1
