-- A new learner. Every older one is refused from here on; what they had claimed or applied is ready again.
local incarnation = redis.call('HINCRBY', writer, 'incarnation', 1)
redis.call('DEL', applied)
local cursor = '0-0'
repeat
  local claimed = redis.call('XAUTOCLAIM', groups, 'learner', 'learner-' .. incarnation, 0, cursor, 'COUNT', 1000, 'JUSTID')
  cursor = claimed[1]
until cursor == '0-0'
return incarnation
