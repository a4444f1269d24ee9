-- ARGV: consumer, entry, id, payload, version. The group goes in and the prompt goes out together, if the server still holds it.
if holder(prompts, 'rollout', ARGV[2]) ~= ARGV[1] then return 0 end
-- First what a full Redis refuses: once a script has written, Redis lets it write more.
local entry = redis.call('XADD', groups, '*', 'id', ARGV[3], 'payload', ARGV[4])
remove(prompts, 'rollout', ARGV[2])
redis.call('HSET', items, ARGV[3], 'g' .. entry .. ' ' .. ARGV[5])
redis.call('HDEL', errors, ARGV[3])
count_version('ready', ARGV[5], 1)
return 1
