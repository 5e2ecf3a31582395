-- What became of a tick that was to move guests; the next one begins to count anew.
--
--   ARGV  retention, P, due (ms), the job that it began (or ''), reason
--
-- → OK | TAKEN (a later moment was judged already)
local key = policy_key(ARGV[2])
if tonumber(redis.call('HGET', key, 'due') or 0) ~= tonumber(ARGV[3]) then return 'TAKEN' end
redis.call('HSET', key, 'over', 0, 'reason', ARGV[5])
if ARGV[4] ~= '' then redis.call('HSET', key, 'acted', now, 'job', ARGV[4]) end
return 'OK'
