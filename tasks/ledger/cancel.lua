-- Ask for the end of a migration. One that its source has not taken up ends here and now; otherwise the mover is asked
-- and decides, because only it knows whether the guest was given away already.
--
--   ARGV  retention, M, message
--
-- → CANCELLED (by this call) | ASKED | ENDED, state | GONE
local migration = ARGV[2]
local record = read(record_key(migration))
if not record then return { 'GONE' } end
if ENDED[record.state] then return { 'ENDED', record.state } end
if record['claim:source'] or record.restored then
  if not record.cancel then
    redis.call('HSET', record_key(migration), 'cancel', now, 'state', 'cancelling')
    event(migration, 'cancelling')
  end
  return { 'ASKED' }
end
finalise(migration, record, 'cancelled', 'cancelled', ARGV[3])
return { 'CANCELLED' }
