-- Remember when the doorbells of a migration were rung last.
--
--   ARGV  retention, M
local migration = ARGV[2]
if redis.call('EXISTS', record_key(migration)) == 1 then redis.call('HSET', record_key(migration), 'rung', now) end
return 'OK'
