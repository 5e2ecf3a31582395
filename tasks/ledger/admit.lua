-- Admit whatever can be, oldest first: a slot on both hosts and memory at the destination, all or nothing, so that no
-- side ever holds one and waits for the other (A→B and B→A with one slot each would wait for ever). One that cannot go
-- does not hold up those behind it whose hosts are free.
--
--   ARGV  retention
--
-- → the migrations admitted now
local admitted = {}
local any_blocker = redis.call('EXISTS', BLOCKERS) == 1

local function unavailable(host, side)
  local known = redis.call('HMGET', host_key(host), 'lease:' .. side, 'slots:' .. side)
  if not known[1] or tonumber(known[1]) < now then return 'no ' .. side .. ' worker is alive on ' .. host end
  if redis.call('SCARD', slots_key(host, side)) >= tonumber(known[2]) then
    return 'every ' .. side .. ' slot of ' .. host .. ' is taken'
  end
end

local function obstacle(record)
  local none = unavailable(record.source, 'source') or unavailable(record.destination, 'destination')
  if none then return none end
  local host = record.destination
  local free = tonumber(redis.call('HGET', host_key(host), 'memory')) - total(residents_key(host)) - total(reserved_key(host))
  if free < tonumber(record.memory) then
    return host .. ' has ' .. string.format('%.0f', math.max(free, 0)) .. ' bytes free, ' .. record.memory .. ' are needed'
  end
end

-- Why it will not be moved at all, as an operator has said since it was asked for: rule, sentence.
local function kept(record)
  if not any_blocker then return end
  for _, subject in ipairs({ 'guest:' .. record.guest, 'host:' .. record.source, 'host:' .. record.destination }) do
    local said = blocker(subject)
    if said then return 'pinned', string.gsub(subject, ':', ' ') .. ' is pinned: ' .. said.reason .. '.' end
  end
  local said = blocker('cordon:' .. record.destination)
  if said then return 'cordoned', record.destination .. ' takes no guests: ' .. said.reason .. '.' end
end

for _, migration in ipairs(redis.call('ZRANGE', WAITING, 0, -1)) do
  local record = read(record_key(migration))
  local guest = record and read(guest_key(record.guest))
  if not record then
    redis.call('ZREM', WAITING, migration)
  elseif record.expires ~= '' and tonumber(record.expires) < now then
    finalise(migration, record, 'failed', 'expired', 'It waited until it expired: ' .. (record.waiting or 'never looked at') .. '.')
  elseif not guest or guest.host ~= record.source or guest.active ~= migration then
    finalise(migration, record, 'failed', 'guest-moved', record.guest .. ' is no longer on ' .. record.source .. '; submit again.')
  else
    local rule, why = kept(record)
    local reason = not rule and obstacle(record)
    if rule then
      finalise(migration, record, 'failed', rule, why)
    elseif not reason then
      local epoch = redis.call('HINCRBY', guest_key(record.guest), 'epoch', 1)
      redis.call('SADD', slots_key(record.source, 'source'), migration)
      redis.call('SADD', slots_key(record.destination, 'destination'), migration)
      redis.call('HSET', reserved_key(record.destination), migration, record.memory)
      redis.call('HSET', record_key(migration), 'state', 'setup', 'epoch', epoch, 'admitted', now, 'rung', now)
      redis.call('HDEL', record_key(migration), 'waiting')
      redis.call('ZREM', WAITING, migration)
      event(migration, 'setup')
      table.insert(admitted, migration)
    elseif reason ~= record.waiting then
      redis.call('HSET', record_key(migration), 'waiting', reason)
      event(migration, 'waiting')
    end
  end
end
return admitted
