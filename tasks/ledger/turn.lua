-- Whose turn it is to take the next step of a job: every host's workers offer, one in each interval is enough.
--
--   ARGV  retention, J, interval (ms), '1' from who has just taken one and lets others wait so much longer
--
-- → OK | TAKEN
local key, interval = job_key(ARGV[2]) .. ':turn', ARGV[3]
if ARGV[4] == '1' then redis.call('SET', key, '1', 'PX', interval) return 'OK' end
if redis.call('SET', key, '1', 'NX', 'PX', interval) then return 'OK' end
return 'TAKEN'
