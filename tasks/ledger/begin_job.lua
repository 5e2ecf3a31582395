-- Begin an evacuation: all its hosts are closed in one instant, before anything is planned, so that no guest of the first
-- is sent to the second. A cordon that somebody else set stays as it is.
--
--   ARGV  retention, J, hosts (JSON list), request (JSON, as tasks/jobs.py reads it), reason, deadline (ms, or '')
--
-- → OK | EXISTS | BUSY, J (another one empties one of these hosts) | UNKNOWN, host
local job, hosts = ARGV[2], cjson.decode(ARGV[3])
if redis.call('EXISTS', job_key(job)) == 1 then return { 'EXISTS' } end
local wanted = {}
for _, host in ipairs(hosts) do
  wanted[host] = true
  if redis.call('SISMEMBER', HOSTS, host) == 0 then return { 'UNKNOWN', host } end
end
for _, other in ipairs(redis.call('SMEMBERS', OPEN_JOBS)) do
  for _, host in ipairs(cjson.decode(redis.call('HGET', job_key(other), 'hosts') or '[]')) do
    if wanted[host] then return { 'BUSY', other } end
  end
end
redis.call('HSET', job_key(job), 'hosts', ARGV[3], 'request', ARGV[4], 'deadline', ARGV[6], 'created', now,
  'state', 'running', 'reason', '')
redis.call('ZADD', JOBS, now, job)
redis.call('SADD', OPEN_JOBS, job)
close_hosts(hosts, ARGV[5])
return { 'OK' }
