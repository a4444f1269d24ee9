-- ARGV: consumer, count, incarnation and number of the version it holds, max lag, claim idle ms, max deliveries, schema
-- version, then the entries it is working on: late heartbeats make them look abandoned, but nobody has died.
-- Refuses a server without a lease, or one whose version the learner has left behind: cut off, it takes nothing. And one
-- whose groups the learner would refuse: those of a newer schema version, or of more than one older.
if not lives(ARGV[1]) then return {'no lease'} end
local current = redis.call('HGET', writer, 'incarnation')
if current ~= ARGV[3] then return {'stale'} end
local newest = tonumber(redis.call('HGET', writer, 'number') or '0')
if newest - tonumber(ARGV[4]) > tonumber(ARGV[5]) then return {'stale'} end
local schema = tonumber(redis.call('HGET', writer, 'schema') or '1')
if tonumber(ARGV[8]) > schema or tonumber(ARGV[8]) < schema - 1 then return {'schema', schema} end

local taken, wanted, idle_ms, max_deaths = {}, tonumber(ARGV[2]), tonumber(ARGV[6]), tonumber(ARGV[7])
local working, num_working = {}, #ARGV - 8
for i = 9, #ARGV do working[ARGV[i]] = true end
local alone, waits = false, false

local function hand(entry, deaths)
  -- Redis 6.2 answers nil for a deleted entry; 7.0 leaves it out.
  local claimed = redis.call('XCLAIM', prompts, 'rollout', ARGV[1], 0, entry, 'RETRYCOUNT', deaths + 1)[1]
  if claimed and claimed[2] then table.insert(taken, {entry, field(claimed[2], 'payload'), deaths + 1}) end
end

local function give_up(entry, owner, deaths)
  local found = redis.call('XRANGE', prompts, entry, entry)[1]
  if not found then return end
  local id = field(found[2], 'id')
  local said = redis.call('HGET', errors, id) or 'it left no word'
  local last = owner == 'nobody' and '' or ', the last was ' .. server_of(owner)
  local detail = 'its holder died or failed ' .. deaths .. ' times' .. last .. ': ' .. said
  bury(entry, id, 'max_deliveries', detail, field(found[2], 'payload'))
end

-- Only a dead holder's delivery counts. What has cost a holder already is handed out by itself, to a server that does
-- nothing else: if that one dies too, nothing else is suspected. Until a server is free, nothing new is begun.
local function offer(pending)
  local entry, owner, deliveries = pending[1], pending[2], pending[4]
  if working[entry] or alone or #taken >= wanted then return end
  local deaths = lives(owner) and deliveries - 1 or deliveries
  if deaths >= max_deaths then
    give_up(entry, owner, deaths)
  elseif deaths == 0 then
    hand(entry, deaths)
  elseif num_working == 0 and #taken == 0 then
    hand(entry, deaths)
    alone = true
  else
    waits = true
  end
end

-- Its own that it does not know of: the answer that named them was lost.
for _, pending in ipairs(redis.call('XPENDING', prompts, 'rollout', '-', '+', wanted + num_working, ARGV[1])) do offer(pending) end
-- Those that nobody holds, and abandoned ones. When nobody could reach Redis for a while, all look abandoned: each holder
-- is given time to say otherwise. An earlier process of this server's own name will not.
local awake = tonumber(redis.call('HGET', pulse, 'awake') or '0')
local early = now() - awake < idle_ms / 1000
local idle = redis.call('XPENDING', prompts, 'rollout', 'IDLE', idle_ms, '-', '+', wanted + num_working + 64)
for _, pending in ipairs(idle) do
  local owner = pending[2]
  local known_dead = owner == 'nobody' or server_of(owner) == server_of(ARGV[1])
  if owner ~= ARGV[1] and (known_dead or not early) then offer(pending) end
end

-- Of new prompts each server has its share, so that the first to ask does not work on all while others wait: what is fed
-- and unfinished, by the servers that sample or soon will. What another leaves lying is taken in the next calls.
local function share()
  local unfinished, time = redis.call('XLEN', prompts), now()
  if num_working >= unfinished then return 0 end
  local servers, all = 1, redis.call('HGETALL', leases)
  for i = 2, #all, 2 do
    local lease = cjson.decode(all[i])
    local fresh = lease.incarnation == tonumber(current) and newest - lease.number <= tonumber(ARGV[5])
    local works = lease.state == 'updating' or lease.state == 'paused' or (lease.state == 'serves' and fresh)
    if works and lease.consumer ~= ARGV[1] and lease.deadline >= time then servers = servers + 1 end
  end
  return math.ceil(unfinished / servers) - num_working
end

if #taken < wanted and not alone and not waits then wanted = math.min(wanted, share()) end
if #taken < wanted and not alone and not waits then
  local fresh = redis.call('XREADGROUP', 'GROUP', 'rollout', ARGV[1], 'COUNT', wanted - #taken, 'STREAMS', prompts, '>')
  for _, entry in ipairs(fresh and fresh[1][2] or {}) do
    table.insert(taken, {entry[1], field(entry[2], 'payload'), 1})
  end
end
return {'ok', taken}
