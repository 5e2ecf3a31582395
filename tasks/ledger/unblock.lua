-- Take back what keeps a subject where it is; with a reason, only if that is the one that stands.
--
--   ARGV  retention, subject, reason (or '': whichever)
--
-- → OK | GONE | OTHER
local subject, reason = ARGV[2], ARGV[3]
local standing = blocker(subject)
if standing and reason ~= '' and standing.reason ~= reason then return 'OTHER' end
redis.call('HDEL', BLOCKERS, subject)
return standing and 'OK' or 'GONE'
