-- ARGV: consumer, address, state, incarnation, number, seconds. Seconds of 0 or less give the lease up.
local server, time = server_of(ARGV[1]), now()
if tonumber(ARGV[6]) <= 0 then return end_lease(ARGV[1]) end
-- Each renews three times in its seconds. When none did for half of them, it was Redis that was away, or all of them.
local last = redis.call('HGET', pulse, 'renewed')
if last and time - tonumber(last) > tonumber(ARGV[6]) / 2 then redis.call('HSET', pulse, 'awake', time) end
redis.call('HSET', pulse, 'renewed', time)
redis.call('HSET', leases, server, cjson.encode({
  server_id = server, consumer = ARGV[1], address = ARGV[2], state = ARGV[3],
  incarnation = tonumber(ARGV[4]), number = tonumber(ARGV[5]), deadline = time + tonumber(ARGV[6]),
}))
return 1
