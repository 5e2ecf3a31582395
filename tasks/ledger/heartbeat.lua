-- What a host says of itself, all at once: the attempts at work on it, what it offers, the guests that it owns. After a
-- loss of Redis' memory the attempts come first, so that nothing is admitted onto slots and guests that are taken.
--
--   ARGV  retention, host, side whose worker speaks, lease (ms), offered: field/value pairs as JSON,
--         attempts: [{migration, guest, epoch, side, nonce, source, destination, memory, capabilities, parameters,
--         granted: '1' when it was let onto the links}],
--         guests: [{name, bytes, epoch, rules, load?}], '1' when these are all guests of the host
--
-- → {guests said to be here, while the record has them elsewhere}
local host, side, lease, complete = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[8] == '1'

-- An attempt that Redis forgot, or remembers from before its admission, is written back by the host that has it.
local function restore(attempt)
  local key = record_key(attempt.migration)
  local record, guest = read(key), read(guest_key(attempt.guest))
  if record and (record.epoch or ENDED[record.state]) then return end
  if guest and tonumber(guest.epoch) > tonumber(attempt.epoch) then return end
  if guest and guest.active ~= '' and guest.active ~= attempt.migration then
    -- Somebody has asked for the guest since Redis forgot. This attempt's epoch is spent all the same: the other one,
    -- when it is admitted, gets a higher one.
    if not redis.call('HGET', record_key(guest.active), 'epoch') then
      redis.call('HSET', guest_key(attempt.guest), 'epoch', attempt.epoch)
    end
    return
  end
  if not guest then
    redis.call('HSET', guest_key(attempt.guest), 'host', attempt.source, 'bytes', attempt.memory, 'seen', now)
    redis.call('HSET', residents_key(attempt.source), attempt.guest, attempt.memory)
    redis.call('SADD', GUESTS, attempt.guest)
  end
  redis.call('HSET', guest_key(attempt.guest), 'epoch', attempt.epoch, 'active', attempt.migration)
  redis.call('HSET', key, 'guest', attempt.guest, 'source', attempt.source, 'destination', attempt.destination,
    'memory', attempt.memory, 'capabilities', attempt.capabilities, 'parameters', attempt.parameters, 'expires', '',
    'created', record and record.created or now, 'state', 'setup', 'epoch', attempt.epoch, 'admitted', now, 'rung', now,
    'restored', now)
  redis.call('HDEL', key, 'waiting')
  redis.call('ZADD', MIGRATIONS, 'NX', now, attempt.migration)
  redis.call('ZREM', WAITING, attempt.migration)
  redis.call('SADD', OPEN, attempt.migration)
  event(attempt.migration, 'restored')
end

-- Each side takes back what is its own: the other may have ended long ago.
local function hold(attempt)
  local key = record_key(attempt.migration)
  local record = read(key)
  if not record or record.epoch ~= attempt.epoch or ENDED[record.state] then return end
  if (record['claim:' .. attempt.side] or attempt.nonce) ~= attempt.nonce or record['outcome:' .. attempt.side] then return end
  if not record['claim:' .. attempt.side] then
    redis.call('HSET', key, 'claim:' .. attempt.side, attempt.nonce, 'claimed:' .. attempt.side, now,
      'lease:' .. attempt.side, now + lease)
  end
  redis.call('SADD', slots_key(host, attempt.side), attempt.migration)
  -- Who was let on goes on, whatever Redis remembers. What it takes of shared links is not known any more: that much may
  -- be given out once too often, until it ends.
  if attempt.granted == '1' then
    -- Unless the other side has ended: nothing is sent any more.
    if not (record['outcome:source'] or record['outcome:destination']) then
      redis.call('SADD', streams_key(host, attempt.side), attempt.migration)
      if record.off_links then
        for _, link in ipairs(cjson.decode(record.crosses)) do
          redis.call('HSET', prefix .. link, attempt.migration, record.rate)
        end
        redis.call('HDEL', key, 'off_links')
      end
    end
    redis.call('ZREM', PREPARED, attempt.migration)
    if not record.granted then redis.call('HSET', key, 'granted', now) end
  elseif not record.granted then
    redis.call('ZADD', PREPARED, record.created, attempt.migration)
  end
  if attempt.side == 'destination' then redis.call('HSET', reserved_key(host), attempt.migration, attempt.memory) end
end

-- The record of a guest follows its owner's journal; only a higher epoch overrules another host's word.
local function register(guest)
  local known = read(guest_key(guest.name))
  if known and known.host ~= host and (known.active ~= '' or tonumber(known.epoch) >= tonumber(guest.epoch)) then
    return false
  end
  local epoch = math.max(tonumber(known and known.epoch or 0), tonumber(guest.epoch))
  if known and known.host ~= host then redis.call('HDEL', residents_key(known.host), guest.name) end
  redis.call('HSET', guest_key(guest.name), 'host', host, 'bytes', guest.bytes, 'epoch', epoch,
    'active', known and known.active or '', 'seen', now, 'rules', guest.rules or '')
  if guest.load then redis.call('HSET', guest_key(guest.name), 'load', guest.load) end
  redis.call('HSET', residents_key(host), guest.name, guest.bytes)
  redis.call('SADD', GUESTS, guest.name)
  return true
end

-- A guest that its host no longer names is gone, unless it moves. A listing may be older than a move that just ended,
-- hence the wait of two leases.
local function forget(listed)
  for _, name in ipairs(redis.call('HKEYS', residents_key(host))) do
    local known = read(guest_key(name))
    if not listed[name] and (not known or (known.active == '' and now - tonumber(known.seen) > 2 * lease)) then
      forget_guest(name, host)
    end
  end
end

for _, attempt in ipairs(cjson.decode(ARGV[6])) do
  restore(attempt)
  hold(attempt)
end

local elsewhere, listed = {}, {}
for _, guest in ipairs(cjson.decode(ARGV[7])) do
  listed[guest.name] = true
  -- Somebody who names one guest has just started it; a listing may be older than its end.
  if not complete then redis.call('DEL', gone_key(guest.name)) end
  if redis.call('GET', gone_key(guest.name)) ~= host and not register(guest) then
    table.insert(elsewhere, guest.name)
  end
end
if complete then forget(listed) end

if side ~= '' then
  for field, value in pairs(cjson.decode(ARGV[5])) do redis.call('HSET', host_key(host), field, value) end
  redis.call('HSET', host_key(host), 'lease:' .. side, now + lease, 'seen', now)
  redis.call('PEXPIRE', host_key(host), lease)
  redis.call('SADD', HOSTS, host)
end
return elsewhere
