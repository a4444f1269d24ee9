-- ARGV: incarnation, ids. In an optimizer step, not yet durable: back-pressure stops counting them, the ledger does not.
local refused = stale(ARGV[1]); if refused then return refused end
for i = 2, #ARGV do
  if redis.call('HEXISTS', items, ARGV[i]) == 1 then redis.call('SADD', applied, ARGV[i]) end
end
return redis.call('SCARD', applied)
