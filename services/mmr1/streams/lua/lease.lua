-- ARGV: server, address, state, incarnation, number, seconds. Seconds of 0 or less give the lease up.
if tonumber(ARGV[6]) <= 0 then
  redis.call('HDEL', takes, ARGV[1])
  return redis.call('HDEL', leases, ARGV[1])
end
redis.call('HSET', leases, ARGV[1], cjson.encode({
  server_id = ARGV[1], address = ARGV[2], state = ARGV[3],
  incarnation = tonumber(ARGV[4]), number = tonumber(ARGV[5]), deadline = now() + tonumber(ARGV[6]),
}))
return 1
