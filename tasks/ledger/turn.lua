-- Whose turn it is to take the next step of a job: every host's workers offer, one in each interval is enough.
--
--   ARGV  retention, J, interval (ms)
--
-- → OK | TAKEN
if redis.call('SET', job_key(ARGV[2]) .. ':turn', '1', 'NX', 'PX', ARGV[3]) then return 'OK' end
return 'TAKEN'
