-- Whose turn it is to look over the whole record: every host's workers offer, one in each interval is enough, and a look
-- reads all that a fleet has.
--
--   ARGV  retention, interval (ms)
--
-- → OK | TAKEN
if redis.call('SET', prefix .. 'looked:over', '1', 'NX', 'PX', ARGV[2]) then return 'OK' end
return 'TAKEN'
