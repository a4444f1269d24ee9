-- ARGV: server, count, incarnation and number of the version it holds, max lag, claim idle ms, max deliveries, schema
-- version, then the entries it is working on: late heartbeats make them look abandoned, but nobody has died.
-- Refuses a server without a lease, or one whose version the learner has left behind: cut off, it takes nothing. And one
-- whose groups the learner would refuse: those of a newer schema version, or of more than one older.
local lease = redis.call('HGET', leases, ARGV[1])
if not lease or cjson.decode(lease).deadline < now() then return {'no lease'} end
local current = redis.call('HGET', writer, 'incarnation')
if current ~= ARGV[3] then return {'stale'} end
if tonumber(redis.call('HGET', writer, 'number') or '0') - tonumber(ARGV[4]) > tonumber(ARGV[5]) then return {'stale'} end
local schema = tonumber(redis.call('HGET', writer, 'schema') or '1')
if tonumber(ARGV[8]) > schema or tonumber(ARGV[8]) < schema - 1 then return {'schema', schema} end

local taken, wanted = {}, tonumber(ARGV[2])
local working = {}
for i = 9, #ARGV do working[ARGV[i]] = true end
-- Entries of dead holders first. An earlier process of this server's own name is such a holder.
local idle = redis.call('XPENDING', prompts, 'rollout', 'IDLE', ARGV[6], '-', '+', wanted + #ARGV - 8)
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
return {'ok', taken}
