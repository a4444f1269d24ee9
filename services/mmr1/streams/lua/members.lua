-- The rollout servers whose lease is valid now. Expired leases are removed.
local members, time = {}, now()
local all = redis.call('HGETALL', leases)
for i = 1, #all, 2 do
  if cjson.decode(all[i + 1]).deadline < time then
    redis.call('HDEL', leases, all[i])
  else
    table.insert(members, all[i + 1])
  end
end
return members
