-- Everything the ledger is made of, at one instant. Pending is counted from the streams, never derived.
return {
  redis.call('XLEN', prompts), redis.call('XLEN', groups), redis.call('SCARD', applied),
  redis.call('HGETALL', ledger), redis.call('HGETALL', writer),
}
