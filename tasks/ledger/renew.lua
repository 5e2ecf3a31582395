-- Renew a side's lease, publish its progress if there is any, and hear whether somebody cancelled. A claim that Redis
-- lost with its last seconds is taken again: only its holder can name this migration, epoch and nonce.
--
--   ARGV  retention, M, side, nonce, epoch, lease (ms), state, progress (JSON, or '' when nothing changed)
--
-- → OK, 'go' once it was let onto the links (else '')
--   | CANCEL (asked for, and this is the source, which decides; the destination hears it from there)
--   | ENDED, state | FENCED | GONE
local migration, side, nonce, epoch, lease = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local state, progress = ARGV[7], ARGV[8]
local RANK = { setup = 1, active = 2, ['pre-switchover'] = 3, device = 4 }
local record = read(record_key(migration))
if not record then return { 'GONE' } end
if record.epoch ~= epoch then return { 'FENCED' } end
if (record['claim:' .. side] or nonce) ~= nonce then return { 'FENCED' } end
if ENDED[record.state] then
  -- The guest's fate is written; the side may still be letting go of memory, and holds its slot meanwhile.
  if not record['outcome:' .. side] then redis.call('HSET', record_key(migration), 'lease:' .. side, now + lease) end
  return { 'ENDED', record.state }
end
redis.call('HSET', record_key(migration), 'claim:' .. side, nonce, 'lease:' .. side, now + lease)
if progress ~= '' then
  redis.call('HSET', record_key(migration), 'progress:' .. side, progress)
  -- The source knows how far the migration is; its words only ever lead forward.
  if side == 'source' and RANK[record.state] and RANK[state] and RANK[state] > RANK[record.state] then
    redis.call('HSET', record_key(migration), 'state', state)
  end
  event(migration, 'progress')
end
if record.cancel and side == 'source' then return { 'CANCEL' } end
return { 'OK', record.granted and 'go' or '' }
