-- ARGV: incarnation, count, cursor. Cursor '>' reads new groups; an entry id reads what this learner already holds, after it.
local refused = stale(ARGV[1]); if refused then return refused end
local reply = redis.call('XREADGROUP', 'GROUP', 'learner', 'learner-' .. ARGV[1], 'COUNT', ARGV[2], 'STREAMS', groups, ARGV[3])
local read = {}
if reply then
  for _, entry in ipairs(reply[1][2]) do
    if entry[2] then table.insert(read, {entry[1], field(entry[2], 'id'), field(entry[2], 'payload')}) end
  end
end
return read
