-- ARGV: run id, the last incarnation its run folder knows of, schema version.
-- A new learner. Every older one is refused from here on; what they had claimed or applied is ready again. A run of the
-- same name from another folder is refused: the two would train on each other's groups.
local owner = redis.call('HGET', writer, 'run_id')
if owner and owner ~= ARGV[1] then return redis.error_reply('FOREIGN ' .. owner) end
local known = tonumber(redis.call('HGET', writer, 'incarnation') or '0')
local incarnation = math.max(known, tonumber(ARGV[2])) + 1
redis.call('HSET', writer, 'run_id', ARGV[1], 'incarnation', incarnation, 'schema', ARGV[3])
take_over(incarnation)
return incarnation
