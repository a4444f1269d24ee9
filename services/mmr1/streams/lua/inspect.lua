-- For people: the accounts, whether this Redis knows the run, groups by version, and since when the oldest entries wait.
local function since(stream)
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
  return #first > 0 and first[1][1] or ''
end
local found = accounts()
table.insert(found, redis.call('EXISTS', unpack(KEYS)))
table.insert(found, redis.call('HGETALL', versions))
table.insert(found, since(prompts))
table.insert(found, since(groups))
table.insert(found, redis.call('TIME'))
return found
