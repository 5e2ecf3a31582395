-- A new record, waiting for admission. Its guest is taken from here on: one migration a guest, queued ones included.
--
--   ARGV  retention, M, guest, source, destination, memory, capabilities, parameters, expires (ms or ''), priority,
--         the job that asks (or '', and none that has ended, was cancelled or gave way), and of a request that was refused
--         already: reason, message
--
-- → OK | EXISTS (the same request came before) | OTHER (the id belongs to another request)
--   | UNKNOWN (no such guest) | BUSY, migration | MOVED, host | ENDED (the job) | FULL (the job has as many under way as it
--   may have at once: of two steps that looked at the same time, each counts without the other's)
local migration, guest, source, destination = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job, refusal = ARGV[11], ARGV[12]
local before = read(record_key(migration))
if before then
  -- A move of this job that Redis lost and a host wrote back: only the job makes this id. It counts as an attempt again;
  -- else the job would ask for it for ever.
  if job ~= '' and not before.job and before.guest == guest and redis.call('SISMEMBER', OPEN_JOBS, job) == 1 then
    redis.call('HSET', record_key(migration), 'job', job)
    redis.call('HSET', job_moves_key(job), migration, guest)
    return { 'EXISTS' }
  end
  if before.guest == guest and before.destination == destination then return { 'EXISTS' } end
  return { 'OTHER' }
end
if job ~= '' then
  local asks = redis.call('HMGET', job_key(job), 'state', 'cancel', 'gave_way', 'request')
  if not asks[1] or ENDED_JOB[asks[1]] or asks[2] or asks[3] then return { 'ENDED' } end
  local most = cjson.decode(asks[4]).max_parallel or 0
  if most > 0 and not refusal then
    for _, other in ipairs(redis.call('HKEYS', job_moves_key(job))) do
      local state = redis.call('HGET', record_key(other), 'state')
      if state and not ENDED[state] then most = most - 1 end
    end
    if most <= 0 then return { 'FULL' } end
  end
end
if not refusal then
  local known = read(guest_key(guest))
  if not known then return { 'UNKNOWN' } end
  if known.active ~= '' then return { 'BUSY', known.active } end
  if known.host ~= source then return { 'MOVED', known.host } end
  redis.call('HSET', guest_key(guest), 'active', migration)
end
redis.call('HSET', record_key(migration), 'guest', guest, 'source', source, 'destination', destination,
  'memory', ARGV[6], 'capabilities', ARGV[7], 'parameters', ARGV[8], 'expires', ARGV[9], 'priority', ARGV[10],
  'created', now, 'state', 'queued')
if job ~= '' then redis.call('HSET', record_key(migration), 'job', job) end
redis.call('ZADD', MIGRATIONS, now, migration)
if job ~= '' then redis.call('HSET', job_moves_key(job), migration, guest) end
if refusal then
  finalise(migration, read(record_key(migration)), 'failed', refusal, ARGV[13])
else
  -- Moves that are asked for within one millisecond keep their order.
  local last = redis.call('ZREVRANGE', WAITING, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', WAITING, math.max(now, tonumber(last or 0) + 0.001), migration)
  redis.call('SADD', OPEN, migration)
  event(migration, 'queued')
end
return { 'OK' }
