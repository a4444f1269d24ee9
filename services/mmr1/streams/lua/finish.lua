-- ARGV: incarnation, ids. A durable checkpoint contains these groups: acknowledged, removed and counted as trained.
local refused = stale(ARGV[1]); if refused then return refused end
local count = 0
for i = 2, #ARGV do
  local where = redis.call('HGET', items, ARGV[i])
  if where then
    if string.sub(where, 1, 1) == 'g' then
      remove(groups, 'learner', string.sub(where, 2))
    else
      remove(prompts, 'rollout', string.sub(where, 2))
    end
    forget(ARGV[i])
    redis.call('HINCRBY', ledger, 'trained', 1)
    count = count + 1
  end
end
return count
