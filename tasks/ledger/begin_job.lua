-- Begin a job. An evacuation closes all its hosts in one instant, before anything is planned, so that no guest of the
-- first is sent to the second (a cordon that somebody else set stays as it is), and every rebalancing gives way to it. A
-- restore opens its hosts in the same way, whoever closed them.
--
--   ARGV  retention, J, kind (evacuation | rebalance | restore), hosts (JSON list), request (JSON, as tasks/jobs.py
--         reads it), reason, deadline (ms, or '')
--
-- → OK | EXISTS | BUSY, J (the job that stands in its way) | UNKNOWN, host
local job, kind, hosts = ARGV[2], ARGV[3], cjson.decode(ARGV[4])
if redis.call('EXISTS', job_key(job)) == 1 then return { 'EXISTS' } end
local wanted = {}
for _, host in ipairs(hosts) do
  wanted[host] = true
  if redis.call('SISMEMBER', HOSTS, host) == 0 then return { 'UNKNOWN', host } end
end

-- No host has two jobs, but that it may be emptied while guests are still brought back to it: the cordon ends that.
-- Nothing is rebalanced beside any other job.
local function in_the_way(other_kind, other_hosts)
  if kind == 'rebalance' then return true end
  if kind == 'evacuation' and other_kind ~= 'evacuation' then return false end
  for _, host in ipairs(other_hosts) do
    if wanted[host] then return true end
  end
  return false
end

local giving_way = {}
for _, other in ipairs(redis.call('SMEMBERS', OPEN_JOBS)) do
  local record = read(job_key(other))
  if record then
    if in_the_way(job_kind(record), cjson.decode(record.hosts)) then return { 'BUSY', other } end
    if job_kind(record) == 'rebalance' then table.insert(giving_way, other) end
  end
end
redis.call('HSET', job_key(job), 'kind', kind, 'hosts', ARGV[4], 'request', ARGV[5], 'deadline', ARGV[7],
  'created', now, 'state', 'running', 'reason', '')
redis.call('ZADD', JOBS, now, job)
redis.call('SADD', OPEN_JOBS, job)
for _, other in ipairs(giving_way) do redis.call('HSETNX', job_key(other), 'gave_way', job) end
if kind == 'evacuation' then
  close_hosts(hosts, ARGV[6])
elseif kind == 'restore' then
  for _, host in ipairs(hosts) do redis.call('HDEL', BLOCKERS, 'cordon:' .. host) end
end
return { 'OK' }
