-- ARGV: incarnation, id, reason, next id, next payload. Drops a group and, when a next id is given, feeds that attempt: one step.
local refused = stale(ARGV[1]); if refused then return refused end
local where = redis.call('HGET', items, ARGV[2])
if not where then return 0 end
if string.sub(where, 1, 1) == 'g' then
  remove(groups, 'learner', string.sub(where, 2))
else
  remove(prompts, 'rollout', string.sub(where, 2))
end
forget(ARGV[2])
redis.call('HINCRBY', ledger, 'dropped:' .. ARGV[3], 1)
if ARGV[4] ~= '' and redis.call('HEXISTS', items, ARGV[4]) == 0 then
  feed(ARGV[4], ARGV[5], 0)
  redis.call('HINCRBY', ledger, 'fed', 1)
end
return 1
