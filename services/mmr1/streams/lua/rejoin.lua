-- ARGV: incarnation. To a Redis that was started anew and may have forgotten its last second: this learner goes on. It is
-- refused where a newer one has taken over, and where nothing is known of the run.
local known = tonumber(redis.call('HGET', writer, 'incarnation') or '0')
local mine = tonumber(ARGV[1])
if known == 0 then return redis.error_reply('FORGOTTEN incarnation ' .. mine) end
if known > mine then return redis.error_reply('STALE incarnation ' .. mine .. ' was superseded by ' .. known) end
if known < mine then
  redis.call('HSET', writer, 'incarnation', ARGV[1])
  take_over(mine)
end
return 1
