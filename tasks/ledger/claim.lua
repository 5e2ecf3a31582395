-- Take one side of one attempt. The fence: whatever is not exactly this migration, epoch and holder is turned away.
--
--   ARGV  retention, M, side, nonce, epoch, lease (ms)
--
-- → OK | TAKEN (by another holder) | FENCED (another epoch) | ENDED (the migration, or this side; or cancelled) | GONE
local migration, side, nonce, epoch, lease = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local record = read(record_key(migration))
if not record then return 'GONE' end
if record.epoch ~= epoch then return 'FENCED' end
local guest_epoch = redis.call('HGET', guest_key(record.guest), 'epoch')
if guest_epoch and tonumber(guest_epoch) > tonumber(epoch) then return 'FENCED' end
if ENDED[record.state] or record['outcome:' .. side] then return 'ENDED' end
local holder = record['claim:' .. side]
if holder and holder ~= nonce then return 'TAKEN' end
if not holder and record.cancel then return 'ENDED' end
-- A restored record that lacks a side: that side has ended and Redis forgot it, or will speak by its own heartbeat.
if not holder and record.restored then return 'FENCED' end
redis.call('HSET', record_key(migration), 'claim:' .. side, nonce, 'lease:' .. side, now + lease)
if not holder then
  redis.call('HSET', record_key(migration), 'claimed:' .. side, now)
  event(migration, 'claimed')
end
return 'OK'
