-- Give back what a migration was given of the shared links between racks, once nobody has spoken for either of its sides
-- for long. Where its guest is, only the hosts' journals say, and nothing here touches that: the record, the claims, the
-- slots and the memory at the destination stay as they are. A share of a link is about speed alone: should the two movers
-- still run without their workers, that link carries one stream more than it should, for as long as they do. Kept, the
-- share would narrow the way out of a whole rack until somebody says which of two dead hosts is fenced. Where a host
-- speaks for the migration again, heartbeat.lua counts the share again.
--
--   ARGV  retention, M, silence (ms)
--
-- → OK | EARLY (somebody has spoken for a side) | GONE (nothing of a shared link is counted for it)
local migration, silence = ARGV[2], tonumber(ARGV[3])
local record = read(record_key(migration))
if not record or ENDED[record.state] or not record.crosses or record.off_links then return 'GONE' end
for _, side in ipairs(SIDES) do
  if now - tonumber(record['lease:' .. side] or record.granted) <= silence then return 'EARLY' end
end
for _, link in ipairs(cjson.decode(record.crosses)) do redis.call('HDEL', prefix .. link, migration) end
redis.call('HSET', record_key(migration), 'off_links', now)
return 'OK'
