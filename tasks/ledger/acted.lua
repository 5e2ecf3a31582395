-- What became of a tick that was to move guests.
--
--   ARGV  retention, P, due (ms), over (from which the next one counts on), the job that it began (or ''), reason
--
-- → OK | TAKEN (a later moment was judged already)
local key = policy_key(ARGV[2])
if tonumber(redis.call('HGET', key, 'due') or 0) ~= tonumber(ARGV[3]) then return 'TAKEN' end
redis.call('HSET', key, 'over', ARGV[4], 'reason', ARGV[6])
if ARGV[5] ~= '' then redis.call('HSET', key, 'acted', now, 'job', ARGV[5]) end
return 'OK'
