-- ARGV: consumer, entries. Resets the idle time of what the server still holds; JUSTID leaves the delivery count alone.
local kept = {}
for i = 2, #ARGV do
  if holder(prompts, 'rollout', ARGV[i]) == ARGV[1] then
    redis.call('XCLAIM', prompts, 'rollout', ARGV[1], 0, ARGV[i], 'JUSTID')
    table.insert(kept, ARGV[i])
  end
end
return kept
