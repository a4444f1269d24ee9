-- ARGV: server, count, incarnation and number of the version it holds, max lag, claim idle ms, max deliveries, schema
-- version, the request's own id, then the entries it is working on: late heartbeats make them look abandoned, but nobody
-- has died. A request that comes twice, because its answer was lost, is answered as before, by what is still held of it.
-- Refuses a server without a lease, or one whose version the learner has left behind: cut off, it takes nothing. And one
-- whose groups the learner would refuse: those of a newer schema version, or of more than one older.
local lease = redis.call('HGET', leases, ARGV[1])
if not lease or cjson.decode(lease).deadline < now() then return {'no lease'} end
local current = redis.call('HGET', writer, 'incarnation')
if current ~= ARGV[3] then return {'stale'} end
if tonumber(redis.call('HGET', writer, 'number') or '0') - tonumber(ARGV[4]) > tonumber(ARGV[5]) then return {'stale'} end
local schema = tonumber(redis.call('HGET', writer, 'schema') or '1')
if tonumber(ARGV[8]) > schema or tonumber(ARGV[8]) < schema - 1 then return {'schema', schema} end

local before = redis.call('HGET', takes, ARGV[1])
local request, entries = string.match(before or '', '^(%S+)(.*)$')
if request == ARGV[9] then
  local again = {}
  for entry in string.gmatch(entries, '%S+') do
    local owner, deliveries = holder(prompts, 'rollout', entry)
    local found = owner == ARGV[1] and redis.call('XRANGE', prompts, entry, entry) or {}
    if #found > 0 then
      local fields = found[1][2]
      table.insert(again, {entry, field(fields, 'payload'), tonumber(field(fields, 'crashes')) + deliveries})
    end
  end
  return {'ok', again}
end

local taken, wanted = {}, tonumber(ARGV[2])
local working = {}
for i = 10, #ARGV do working[ARGV[i]] = true end
-- Entries of dead holders first. An earlier process of this server's own name is such a holder.
local idle = redis.call('XPENDING', prompts, 'rollout', 'IDLE', ARGV[6], '-', '+', wanted + #ARGV - 9)
for _, pending in ipairs(idle) do
  local entry = pending[1]
  if #taken < wanted and not working[entry] then
    -- Redis 6.2 answers nil for a deleted entry; 7.0 leaves it out.
    local claimed = redis.call('XCLAIM', prompts, 'rollout', ARGV[1], ARGV[6], entry)[1]
    if claimed and claimed[2] then
      local fields = claimed[2]
      local crashes = tonumber(field(fields, 'crashes')) + pending[4]
      if crashes >= tonumber(ARGV[7]) then
        local id = field(fields, 'id')
        local said = redis.call('HGET', errors, id) or 'it left no word'
        local detail = 'its holder died ' .. crashes .. ' times, the last was ' .. pending[2] .. ': ' .. said
        bury(entry, id, 'max_deliveries', detail, field(fields, 'payload'))
      else
        table.insert(taken, {entry, field(fields, 'payload'), crashes + 1})
      end
    end
  end
end
if #taken < wanted then
  local fresh = redis.call('XREADGROUP', 'GROUP', 'rollout', ARGV[1], 'COUNT', wanted - #taken, 'STREAMS', prompts, '>')
  if fresh then
    for _, entry in ipairs(fresh[1][2]) do
      table.insert(taken, {entry[1], field(entry[2], 'payload'), tonumber(field(entry[2], 'crashes')) + 1})
    end
  end
end
if #taken > 0 then
  local note = ARGV[9]
  for _, one in ipairs(taken) do note = note .. ' ' .. one[1] end
  redis.call('HSET', takes, ARGV[1], note)
end
return {'ok', taken}
