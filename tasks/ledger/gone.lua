-- A guest that was stopped on its host: its memory is free at once. Left to the heartbeats where the record has it
-- elsewhere, or moving. A listing from before the stop may still arrive: it is not believed for the time of a lease.
--
--   ARGV  retention, G, host, lease (ms)
--
-- → OK | MOVED, host | BUSY, migration | UNKNOWN
local guest, host = ARGV[2], ARGV[3]
local known = read(guest_key(guest))
if not known then return { 'UNKNOWN' } end
if known.host ~= host then return { 'MOVED', known.host } end
if known.active ~= '' then return { 'BUSY', known.active } end
forget_guest(guest, host)
redis.call('SET', gone_key(guest), host, 'PX', ARGV[4])
return { 'OK' }
