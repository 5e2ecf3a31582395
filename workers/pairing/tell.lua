-- A handover fact: true for ever, so that the first to tell it stays named and telling it again changes nothing.
--
--   KEYS[1]  guest:G:handover    hash    "EPOCH.FACT.M" → the host that told it
--   KEYS[2]  migration:M         hash    only looked at: events of a record that is gone would have no owner
--   KEYS[3]  migration:M:events  stream  wakes the peer
--   ARGV     epoch, fact, host, migration
redis.call('HSETNX', KEYS[1], ARGV[1] .. '.' .. ARGV[2] .. '.' .. ARGV[4], ARGV[3])
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'event', 'fact', 'fact', ARGV[2])
end
return 'OK'
