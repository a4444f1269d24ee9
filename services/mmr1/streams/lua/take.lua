-- ARGV: server, count, incarnation and number of the version it holds, max lag, claim idle ms, max deliveries.
-- Refuses a server without a lease, or one whose version the learner has left behind: cut off, it takes nothing.
local lease = redis.call('HGET', leases, ARGV[1])
if not lease or cjson.decode(lease).deadline < now() then return {'no lease'} end
local current = redis.call('HGET', writer, 'incarnation')
if current ~= ARGV[3] then return {'stale'} end
if tonumber(redis.call('HGET', writer, 'number') or '0') - tonumber(ARGV[4]) > tonumber(ARGV[5]) then return {'stale'} end

local taken, wanted = {}, tonumber(ARGV[2])
-- Entries of dead holders first. Redis 6.2 answers nil for a deleted entry; 7.0 leaves it out.
local claimed = redis.call('XAUTOCLAIM', prompts, 'rollout', ARGV[1], ARGV[6], '0-0', 'COUNT', wanted)
for _, entry in ipairs(claimed[2]) do
  if entry and entry[2] then
    local fields = entry[2]
    local _, deliveries = holder(prompts, 'rollout', entry[1])
    local crashes = tonumber(field(fields, 'crashes')) + deliveries - 1
    if crashes >= tonumber(ARGV[7]) then
      bury(entry[1], field(fields, 'id'), 'max_deliveries', 'its holder died ' .. crashes .. ' times', field(fields, 'payload'))
    else
      table.insert(taken, {entry[1], field(fields, 'payload'), crashes + 1})
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
