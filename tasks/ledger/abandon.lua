-- End a migration that its source never took up: nobody touched the guest. Whoever comes later is told ENDED.
--
--   ARGV  retention, M, epoch, grace (ms since the admission), message
--
-- → OK | CLAIMED | EARLY | ENDED | FENCED | GONE
local migration, epoch, grace = ARGV[2], ARGV[3], tonumber(ARGV[4])
local record = read(record_key(migration))
if not record then return 'GONE' end
if record.epoch ~= epoch then return 'FENCED' end
if ENDED[record.state] then return 'ENDED' end
if record['claim:source'] then return 'CLAIMED' end
-- Of a record that was lost once, the source may have ended long ago: the destination knows how.
if record.restored and record['claim:destination'] and not record['outcome:destination'] then return 'CLAIMED' end
if now - tonumber(record.admitted) < grace then return 'EARLY' end
finalise(migration, record, 'failed', 'no-worker', ARGV[5])
return 'OK'
