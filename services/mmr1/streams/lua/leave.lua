-- ARGV: consumer. It ends of its own will: what it holds, known to it or not, waits again and counts no death. A lease that
-- a later process of its server has taken stays.
repeat
  local held = redis.call('XPENDING', prompts, 'rollout', '-', '+', 1000, ARGV[1])
  for _, pending in ipairs(held) do release(pending[1], pending[4] - 1) end
until #held == 0
redis.call('XGROUP', 'DELCONSUMER', prompts, 'rollout', ARGV[1])
return end_lease(ARGV[1])
