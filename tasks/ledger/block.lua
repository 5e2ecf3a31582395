-- Keep a subject where it is. What somebody else said of it stands unless it is to be replaced.
--
--   ARGV  retention, subject (guest:G | host:H | cordon:H), reason, expires (ms, or 0), '1' to replace
--
-- → OK | EXISTS, what stands (JSON)
local subject, reason, expires, replace = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local standing = blocker(subject)
if standing and standing.reason ~= reason and not replace then
  return { 'EXISTS', redis.call('HGET', BLOCKERS, subject) }
end
local since = standing and standing.since or now
redis.call('HSET', BLOCKERS, subject, cjson.encode({ reason = reason, since = since, expires = expires }))
return { 'OK' }
