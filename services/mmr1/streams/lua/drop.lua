-- ARGV: incarnation, id, reason, next id, next payload. Drops a group and, when a next id is given, feeds that attempt: one step.
local refused = stale(ARGV[1]); if refused then return refused end
if not settle(ARGV[2], 'dropped', 'dropped:' .. ARGV[3]) then return 0 end
if ARGV[4] ~= '' and redis.call('HEXISTS', items, ARGV[4]) == 0 then
  feed(ARGV[4], ARGV[5], 0)
  redis.call('HINCRBY', ledger, 'fed', 1)
end
return 1
