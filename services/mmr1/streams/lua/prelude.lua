-- Shared by every script. All keys of a run share one hash tag, so one script may touch them all.
local prompts, groups, ledger, items, applied, leases, writer, graveyard, versions, errors, pulse, settled =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

-- A learner that has been superseded may write nothing. Nor may one that Redis has no memory of: it was emptied, nobody
-- has taken over, and the learner must first fill it again.
local function stale(incarnation)
  local current = redis.call('HGET', writer, 'incarnation')
  if current == incarnation then return nil end
  if not current or tonumber(current) < tonumber(incarnation) then return redis.error_reply('FORGOTTEN incarnation ' .. incarnation) end
  return redis.error_reply('STALE incarnation ' .. incarnation .. ' was superseded by ' .. current)
end

-- Everything the ledger is made of. Pending is counted, never derived.
local function accounts()
  return {
    redis.call('XLEN', prompts), redis.call('XLEN', groups), redis.call('SCARD', applied), redis.call('HGETALL', ledger),
    redis.call('HGET', writer, 'incarnation') or '0', redis.call('HGET', writer, 'number') or '0',
  }
end

-- Who holds a delivered entry, and how often it was delivered.
local function holder(stream, group, entry)
  local found = redis.call('XPENDING', stream, group, entry, entry, 1)
  if #found == 0 then return nil, 0 end
  return found[1][2], found[1][4]
end

-- A consumer is one process of a server, 'server/process'. It lives while its server's lease is valid and is its own.
local function server_of(consumer)
  return string.match(consumer, '^(.*)/[^/]*$') or consumer
end

local function own_lease(consumer)
  local lease = redis.call('HGET', leases, server_of(consumer))
  lease = lease and cjson.decode(lease)
  return lease and lease.consumer == consumer and lease
end

local function lives(consumer)
  local lease = own_lease(consumer)
  return lease and lease.deadline >= now()
end

local function end_lease(consumer)
  return own_lease(consumer) and redis.call('HDEL', leases, server_of(consumer)) or 0
end

-- Nobody's any more, and taken before anything new. Its delivery count says how many holders it has cost.
local function release(entry, deaths)
  redis.call('XCLAIM', prompts, 'rollout', 'nobody', 0, entry, 'IDLE', 31536000000, 'RETRYCOUNT', deaths, 'JUSTID')
end

local function remove(stream, group, entry)
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
end

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- 'crashes' is for servers of the release before, which count deaths by it.
-- items[id] is 'p<entry>' while the prompt waits or runs and 'g<entry> <version>' once its group is ready.
local function feed(id, payload, crashes)
  local entry = redis.call('XADD', prompts, '*', 'id', id, 'payload', payload, 'crashes', crashes)
  redis.call('HSET', items, id, 'p' .. entry)
  return entry
end

local function position_of(id)
  return tonumber(string.match(id, '^%d+'))
end

-- Trained, dropped or dead: no longer pending, and known to be over. What is not pending and not settled was forgotten.
local function close(id)
  redis.call('HDEL', items, id)
  redis.call('SREM', applied, id)
  redis.call('HDEL', errors, id)
  redis.call('ZADD', settled, position_of(id), id)
end

-- Ids are kept one by one from the place on that was the oldest pending one at the last checkpoint; before it all is over.
local function is_settled(id, position)
  local before = tonumber(redis.call('HGET', ledger, 'settled_before') or '0')
  return position < before or redis.call('ZSCORE', settled, id)
end

-- Groups by the version that sampled them: ready, trained, dropped. The ledger's own counters do not rest on these.
local function count_version(state, version, change)
  if version == '' then return end
  local name = state .. ':' .. version
  if redis.call('HINCRBY', versions, name, change) == 0 then redis.call('HDEL', versions, name) end
end

-- Takes a pending id out, wherever it is, and counts what became of it. False: it is not pending.
local function settle(id, state, counter)
  local where = redis.call('HGET', items, id)
  if not where then return false end
  local kind, entry, version = string.match(where, '^(.)(%S+) ?(%S*)$')
  if kind == 'g' then
    remove(groups, 'learner', entry)
    count_version('ready', version, -1)
    count_version(state, version, 1)
  else
    remove(prompts, 'rollout', entry)
  end
  close(id)
  redis.call('HINCRBY', ledger, counter, 1)
  return true
end

local function bury(entry, id, reason, detail, payload)
  remove(prompts, 'rollout', entry)
  close(id)
  redis.call('HINCRBY', ledger, 'dead:' .. reason, 1)
  redis.call('XADD', graveyard, '*', 'id', id, 'reason', reason, 'detail', detail, 'payload', payload)
end

-- What earlier learners had claimed or applied is ready again, for this one.
local function take_over(incarnation)
  redis.call('DEL', applied)
  local cursor = '0-0'
  repeat
    local claimed = redis.call('XAUTOCLAIM', groups, 'learner', 'learner-' .. incarnation, 0, cursor, 'COUNT', 1000, 'JUSTID')
    cursor = claimed[1]
  until cursor == '0-0'
end
