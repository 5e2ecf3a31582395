-- Ask for the end of a job: the next step ends it.
--
--   ARGV  retention, J
--
-- → ASKED | ENDED, state | GONE
local record = read(job_key(ARGV[2]))
if not record then return { 'GONE' } end
if ENDED_JOB[record.state] then return { 'ENDED', record.state } end
if not record.cancel then redis.call('HSET', job_key(ARGV[2]), 'cancel', now) end
return { 'ASKED' }
