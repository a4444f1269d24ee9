-- Everything the ledger is made of, and every pending id, at one instant. Pending is counted, never derived.
return {
  redis.call('XLEN', prompts), redis.call('XLEN', groups), redis.call('SCARD', applied), redis.call('HGETALL', ledger),
  redis.call('HGET', writer, 'incarnation') or '0', redis.call('HGET', writer, 'number') or '0',
  redis.call('HKEYS', items),
}
