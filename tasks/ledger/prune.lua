-- Drop from the indexes what is gone: records past their retention (the oldest thousand at a time), hosts that neither
-- speak nor hold anything, blockers past their expiry, jobs past their retention.
--
--   ARGV  retention
for _, migration in ipairs(redis.call('ZRANGE', MIGRATIONS, 0, 999)) do
  if redis.call('EXISTS', record_key(migration)) == 0 then redis.call('ZREM', MIGRATIONS, migration) end
end
for _, host in ipairs(redis.call('SMEMBERS', HOSTS)) do
  local held = redis.call('EXISTS', host_key(host), residents_key(host), reserved_key(host),
    slots_key(host, 'source'), slots_key(host, 'destination'))
  if held == 0 then
    redis.call('SREM', HOSTS, host)
    redis.call('HDEL', MEASURED, host)
    redis.call('HDEL', OVERHEADS, host)
  end
end
for _, subject in ipairs(redis.call('HKEYS', BLOCKERS)) do
  if not blocker(subject) then redis.call('HDEL', BLOCKERS, subject) end
end
for _, job in ipairs(redis.call('ZRANGE', JOBS, 0, 999)) do
  if redis.call('EXISTS', job_key(job)) == 0 then redis.call('ZREM', JOBS, job) end
end
for _, job in ipairs(redis.call('SMEMBERS', OPEN_JOBS)) do
  if redis.call('EXISTS', job_key(job)) == 0 then redis.call('SREM', OPEN_JOBS, job) end
end
return 'OK'
