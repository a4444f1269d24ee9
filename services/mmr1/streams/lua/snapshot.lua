-- The accounts, and every pending id, at one instant.
local found = accounts()
table.insert(found, redis.call('HKEYS', items))
return found
