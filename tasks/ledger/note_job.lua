-- What a step of a job found. Only one that has not ended is written to. No end is believed while, in this same instant,
-- one of its moves is under way; `completed` of an evacuation only when nobody lives on its hosts, moves there, or waits to.
--
--   ARGV  retention, J, state, reason, guests: {name: standing} as JSON
--
-- → OK | ENDED | OCCUPIED, by what | GONE
local job, state = ARGV[2], ARGV[3]
local record = read(job_key(job))
if not record then return { 'GONE' } end
if ENDED_JOB[record.state] then return { 'ENDED' } end
local hosts = cjson.decode(record.hosts)
if ENDED_JOB[state] then
  for _, migration in ipairs(redis.call('HKEYS', job_moves_key(job))) do
    local how = redis.call('HMGET', record_key(migration), 'state', 'source')
    -- Of a source that nobody speaks for, nobody would ever say more.
    local heard = how[2] and tonumber(redis.call('HGET', host_key(how[2]), 'lease:source') or 0) >= now
    if how[1] and not ENDED[how[1]] and (heard or state == 'completed') then return { 'OCCUPIED', migration } end
  end
end
if state == 'completed' and job_kind(record) == 'evacuation' then
  local wanted = {}
  for _, host in ipairs(hosts) do
    wanted[host] = true
    if redis.call('EXISTS', residents_key(host), reserved_key(host)) > 0 then return { 'OCCUPIED', host } end
  end
  for _, migration in ipairs(redis.call('ZRANGE', WAITING, 0, -1)) do
    local to = redis.call('HGET', record_key(migration), 'destination')
    if to and wanted[to] then return { 'OCCUPIED', to } end
  end
end
for guest, standing in pairs(cjson.decode(ARGV[5])) do
  redis.call('HSET', job_guests_key(job), guest, cjson.encode(standing))
end
redis.call('HSET', job_key(job), 'state', state, 'reason', ARGV[4], 'stepped', now)
if ENDED_JOB[state] then
  redis.call('HSET', job_key(job), 'finished', now)
  redis.call('SREM', OPEN_JOBS, job)
  for _, key in ipairs({ job_key(job), job_guests_key(job), job_moves_key(job) }) do
    redis.call('PEXPIRE', key, retention)
  end
elseif job_kind(record) == 'evacuation' then
  close_hosts(hosts, cjson.decode(record.request).reason)
end
return { 'OK' }
