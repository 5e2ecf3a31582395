-- A role's worker stops: nothing more is admitted to it. Its movers, if any, go on.
--
--   ARGV  retention, host, side
local host, side = ARGV[2], ARGV[3]
redis.call('HDEL', host_key(host), 'lease:' .. side)
local other = redis.call('HMGET', host_key(host), 'lease:source', 'lease:destination')
if not other[1] and not other[2] then redis.call('DEL', host_key(host)) end
return 'OK'
