-- Take back what an ended migration still holds for a side that nobody renews any more.
--
--   ARGV  retention, M
--
-- → the sides released
local migration, released = ARGV[2], {}
local record = read(record_key(migration))
if not record then
  redis.call('SREM', OPEN, migration)
elseif ENDED[record.state] then
  for _, side in ipairs(SIDES) do
    local held = redis.call('SISMEMBER', slots_key(record[side], side), migration) == 1
    if held and tonumber(record['lease:' .. side] or 0) < now then
      release(migration, record, side)
      table.insert(released, side)
    end
  end
  close(migration, record)
end
return released
