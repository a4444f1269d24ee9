-- ARGV: incarnation, force, then id, position, attempt and payload of each. Feeding the same id twice does nothing; nor
-- does feeding a place again that has passed, unless it is forced. What is settled no force brings back. Returns how many
-- were fed.
local refused = stale(ARGV[1]); if refused then return refused end
local following = tonumber(redis.call('HGET', ledger, 'next_position') or '0')
local count = 0
for i = 3, #ARGV, 4 do
  local id, position = ARGV[i], tonumber(ARGV[i + 1])
  local passed = ARGV[i + 2] == '0' and ARGV[2] == '0' and position < following
  if not passed and redis.call('HEXISTS', items, id) == 0 and not is_settled(id, position) then
    following = math.max(following, position + 1)
    feed(id, ARGV[i + 3], 0)
    count = count + 1
  end
end
if count > 0 then
  redis.call('HSET', ledger, 'next_position', following)
  redis.call('HINCRBY', ledger, 'fed', count)
end
return count
