-- How one side ended. The record ends when the guest's fate is known: completed as soon as either side knows that the
-- destination took it, failed or cancelled when the source, which then still has it, says so, or when the destination
-- gives up before any source began. One that was taken back for what an operator said ends as failed, for that reason.
-- What was written stays.
--
--   ARGV  retention, M, side, nonce, epoch, outcome (completed | failed | cancelled), reason, message, progress (JSON)
--
-- → OK | CONFLICT (this contradicts what is written; nothing was changed but the slot) | FENCED | GONE
local migration, side, nonce, epoch, outcome = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local record = read(record_key(migration))
if not record then return 'GONE' end
if record.epoch ~= epoch then return 'FENCED' end
if (record['claim:' .. side] or nonce) ~= nonce then return 'FENCED' end
local before = record['outcome:' .. side]
if before then return before == outcome and 'OK' or 'CONFLICT' end
record['claim:' .. side], record['outcome:' .. side] = nonce, outcome
redis.call('HSET', record_key(migration), 'claim:' .. side, nonce, 'outcome:' .. side, outcome, 'progress:' .. side, ARGV[9])
redis.call('HDEL', record_key(migration), 'lease:' .. side)
local progress = cjson.decode(ARGV[9])
local rates, bulk = progress.rates, progress.rounds and progress.rounds[1]
if side == 'source' and rates and rates.dirty and redis.call('EXISTS', guest_key(record.guest)) == 1 then
  redis.call('HSET', guest_key(record.guest), 'dirty', rates.dirty)
end
-- What a stream between these hosts really reaches. A short one says more of its beginning, a throttled one nothing.
if side == 'source' and outcome == 'completed' and bulk and (bulk.sent or 0) >= 64 * 1048576 and (bulk.seconds or 0) > 0
  and (cjson.decode(record.parameters)['max-bandwidth'] or 0) == 0 then
  for _, end_ in ipairs(SIDES) do
    local before = redis.call('HGET', MEASURED, record[end_])
    local reached = bulk.sent / bulk.seconds
    redis.call('HSET', MEASURED, record[end_], string.format('%.0f', before and (tonumber(before) + reached) / 2 or reached))
  end
end
-- How long it was on the links beside what it sent: the start of its movers unless it had prepared, pairing, the words at
-- its end. When one that was written back was let on, nobody knows.
if side == 'source' and outcome == 'completed' and bulk and record.granted and not record.restored then
  local took = tonumber(record.finished or now) - tonumber(record.granted)
  for _, round in ipairs(progress.rounds) do
    if round.kind ~= 'final' then took = took - 1000 * (round.seconds or 0) end
  end
  took = math.max(0, took - 1000 * (progress.seconds and progress.seconds.downtime or 0))
  for _, end_ in ipairs(SIDES) do
    local kept = cjson.decode(redis.call('HGET', OVERHEADS, record[end_]) or '[]')
    table.insert(kept, math.floor(took))
    if #kept > 9 then table.remove(kept, 1) end
    redis.call('HSET', OVERHEADS, record[end_], cjson.encode(kept))
  end
end
release(migration, record, side)
-- Whatever the other side is at, nothing is sent any more: a source that lost its power may not say so for days.
leave_links(migration, record)
if ENDED[record.state] then
  close(migration, record)
  event(migration, 'outcome')
  if (outcome == 'completed') ~= (record.state == 'completed') then return 'CONFLICT' end
elseif outcome == 'completed' or side == 'source' or not (record['claim:source'] or record.restored) then
  if outcome == 'cancelled' and record.kept then
    finalise(migration, record, 'failed', record.kept, record.kept_why)
  else
    finalise(migration, record, outcome, ARGV[7], ARGV[8])
  end
else
  event(migration, 'outcome')
end
return 'OK'
