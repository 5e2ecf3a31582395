-- Admit whatever can be, and let onto the links whatever may send.
--
-- Admission takes a slot on both hosts and memory at the destination, all or nothing, so that no side ever holds one and
-- waits for the other (A→B and B→A with one slot each would wait for ever). A host has as many slots as streams may leave
-- (enter) it, and `ahead` more: migrations that prepare (pair, start the twin) while others send, so that the link is not
-- idle between two. Each sends once it is let onto all links on its way: those of both hosts and the shared ones between.
-- One that only prepares, because its other host is busy, keeps nobody from sending: a free link is given to whoever can.
--
-- The order is fair: by priority; within one, sources share by bytes (start-time fair queueing, Goyal 1996: each has a
-- mark that moves on by what is admitted, the lowest goes first, each with its oldest; who comes late begins where the
-- others are). What has prepared goes before what has not: else the link would be idle while that prepares. What cannot go does not hold up those behind it whose hosts are free. Nothing waits for the rest of a batch.
--
--   ARGV  retention, ms ('' : look in any case): leave it when somebody has looked within so long
--
-- → {the migrations admitted now}, {those let onto the links now}
if ARGV[2] ~= '' and not redis.call('SET', prefix .. 'looked', '1', 'NX', 'PX', ARGV[2]) then return { {}, {} } end

local SERVED = prefix .. 'served'
local any_blocker = redis.call('EXISTS', BLOCKERS) == 1
local admitted, granted = {}, {}
-- The mark of a source, in bytes that were admitted.
local function start(source)
  local marks = redis.call('HMGET', SERVED, '', source)
  return math.max(tonumber(marks[1] or 0), tonumber(marks[2] or 0))
end

-- What hosts offer, read once: host → fields.
local offers = {}

local function offer(host)
  if not offers[host] then offers[host] = read(host_key(host)) or {} end
  return offers[host]
end

local function slots(host, side) return tonumber(offer(host)['slots:' .. side] or 0) end

-- Bytes/s of one stream of this host, when every slot sends.
local function share(host, side) return tonumber(offer(host).bandwidth or 1250000000) / math.max(1, slots(host, side)) end

local function deserted(host, side)
  if tonumber(offer(host)['lease:' .. side] or 0) < now then return 'no ' .. side .. ' worker is alive on ' .. host end
end

-- The side whose host has no slot for one more beside those that do not send; `sends`: this one would, at once.
local function crowded(record, sends)
  for _, side in ipairs(SIDES) do
    local host = record[side]
    local quiet = redis.call('SCARD', slots_key(host, side)) - redis.call('SCARD', streams_key(host, side))
    if quiet + (sends and 0 or 1) > tonumber(offer(host).ahead or 0) then
      return 'every ' .. side .. ' slot of ' .. host .. ' is taken'
    end
  end
end

local function no_room(record)
  local host = record.destination
  local free = tonumber(offer(host).memory) - total(residents_key(host)) - total(reserved_key(host))
  if free < tonumber(record.memory) then
    return host .. ' has ' .. string.format('%.0f', math.max(free, 0)) .. ' bytes free, ' .. record.memory .. ' are needed'
  end
end

-- The shared links on its way, as link:L:WAY → bytes/s that each carries; none between hosts behind the same one.
local function shared_links(record)
  local source, destination = offer(record.source), offer(record.destination)
  local found = {}
  if (source.uplink or '') ~= (destination.uplink or '') then
    for way, ends in pairs({ up = source, down = destination }) do
      local carries = tonumber(ends.uplink_bandwidth or 0)
      if (ends.uplink or '') ~= '' and carries > 0 then found['link:' .. ends.uplink .. ':' .. way] = carries end
    end
  end
  return found
end

-- Shared links that somebody who is prepared waits for: nobody behind gets in before. A stream as wide as its link would
-- else wait for as long as narrow ones keep coming.
local awaited = {}

-- Why it may not send yet, and the shared link that is full, if that is it; else nil, nil, its rate in bytes/s, and the
-- shared links that it crosses.
local function congested(record)
  for _, side in ipairs(SIDES) do
    local host = record[side]
    if redis.call('SCARD', streams_key(host, side)) >= slots(host, side) then
      return 'every ' .. side .. ' slot of ' .. host .. ' is taken'
    end
  end
  local links = shared_links(record)
  local rate = math.min(share(record.source, 'source'), share(record.destination, 'destination'))
  for _, carries in pairs(links) do rate = math.min(rate, carries) end
  local crossed = {}
  for link, carries in pairs(links) do
    if awaited[link] or total(prefix .. link) + rate > carries then
      return 'the shared link ' .. string.match(link, '^link:(.*):%a+$') .. ' is full', link
    end
    table.insert(crossed, link)
  end
  return nil, nil, rate, crossed
end

local function let_on(migration, record, rate, crossed)
  for _, side in ipairs(SIDES) do redis.call('SADD', streams_key(record[side], side), migration) end
  for _, link in ipairs(crossed) do redis.call('HSET', prefix .. link, migration, string.format('%.0f', rate)) end
  redis.call('HSET', record_key(migration), 'granted', now, 'rate', string.format('%.0f', rate))
  if #crossed > 0 then redis.call('HSET', record_key(migration), 'crosses', cjson.encode(crossed)) end
  redis.call('HDEL', record_key(migration), 'waiting')
  redis.call('ZREM', PREPARED, migration)
  event(migration, 'granted')
  table.insert(granted, migration)
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

local function explain(migration, record, reason)
  if reason == record.waiting then return end
  redis.call('HSET', record_key(migration), 'waiting', reason)
  event(migration, 'waiting')
end

-- A source that nobody speaks for would not hear that it may send, and the links would be idle for it.
local function unheard(record)
  local lease = record['lease:source']
  if not lease then return deserted(record.source, 'source') end
  if tonumber(lease) < now then return 'the worker on ' .. record.source .. ' no longer renews its lease' end
end

-- A migration that prepares: whether it was let onto the links.
local function grant(migration, record)
  local reason, link, rate, crossed = unheard(record)
  if not reason then reason, link, rate, crossed = congested(record) end
  if link then awaited[link] = true end
  if reason then
    explain(migration, record, 'prepared; ' .. reason)
    return false
  end
  let_on(migration, record, rate, crossed)
  return true
end

-- One that waits: whether it was admitted.
local function admit(migration, record)
  local full, _, rate, crossed = congested(record)
  local reason = deserted(record.source, 'source') or deserted(record.destination, 'destination')
    or (crowded(record, not full) and (full or crowded(record, true))) or no_room(record)
  if reason then
    explain(migration, record, reason)
    return false
  end
  local epoch = redis.call('HINCRBY', guest_key(record.guest), 'epoch', 1)
  for _, side in ipairs(SIDES) do redis.call('SADD', slots_key(record[side], side), migration) end
  redis.call('HSET', reserved_key(record.destination), migration, record.memory)
  redis.call('HSET', record_key(migration), 'state', 'setup', 'epoch', epoch, 'admitted', now, 'rung', now)
  redis.call('HDEL', record_key(migration), 'waiting')
  record.waiting = nil
  redis.call('ZREM', WAITING, migration)
  redis.call('ZADD', PREPARED, record.created, migration)
  event(migration, 'setup')
  table.insert(admitted, migration)
  local begins = start(record.source)
  redis.call('HSET', SERVED, '', string.format('%.0f', begins),
    record.source, string.format('%.0f', begins + tonumber(record.memory)))
  if full then
    explain(migration, record, 'prepared; ' .. full)
  else
    let_on(migration, record, rate, crossed)
  end
  return true
end

-- Whether a record may still wait; one that may not is ended here.
local function waits(migration, record)
  local guest = read(guest_key(record.guest))
  if record.expires ~= '' and tonumber(record.expires) < now then
    finalise(migration, record, 'failed', 'expired', 'It waited until it expired: ' .. (record.waiting or 'never looked at') .. '.')
  elseif not guest or guest.host ~= record.source or guest.active ~= migration then
    finalise(migration, record, 'failed', 'guest-moved', record.guest .. ' is no longer on ' .. record.source .. '; submit again.')
  else
    local rule, why = kept(record)
    if not rule then return true end
    finalise(migration, record, 'failed', rule, why)
  end
  return false
end

-- One that prepares ends as what waits does. Nothing of its guest was sent, but its movers are at work: they are told like
-- those of one that is cancelled, and only the source's knows how it ends.
local function take_back(migration, record, rule, why)
  if not (record['claim:source'] or record.restored) then return finalise(migration, record, 'failed', rule, why) end
  redis.call('HSET', record_key(migration), 'cancel', now, 'state', 'cancelling', 'kept', rule, 'kept_why', why)
  redis.call('HDEL', record_key(migration), 'waiting')
  event(migration, 'cancelling')
end

-- Everything that could take something: priority → { of those that prepare: source → by age {migration, record}; of those
-- that wait: the same }.
local queues, priorities = {}, {}
local function enqueue(migration, record, stage)
  local priority = tonumber(record.priority or 30)  -- of before there was one, or written back: a user's
  if not queues[priority] then
    queues[priority] = { [grant] = {}, [admit] = {} }
    table.insert(priorities, priority)
  end
  local stages = queues[priority][stage]
  stages[record.source] = stages[record.source] or { next = 1 }
  table.insert(stages[record.source], { migration, record })
end

-- Each source's oldest that can be taken, in turns, the source with the lowest mark first.
local function take_turns(queue, take)
  local sources, starts = {}, {}
  for source in pairs(queue) do
    table.insert(sources, source)
    starts[source] = start(source)
  end
  local function age(source) return tonumber(queue[source][1][2].created) end
  table.sort(sources, function(a, b)
    if starts[a] ~= starts[b] then return starts[a] < starts[b] end
    if age(a) ~= age(b) then return age(a) < age(b) end
    return a < b
  end)
  -- What was refused stays so for this call: nothing is given back meanwhile.
  local took = true
  while took do
    took = false
    for _, source in ipairs(sources) do
      local of_source, done = queue[source], false
      while of_source[of_source.next] and not done do
        local migration, record = unpack(of_source[of_source.next])
        of_source.next = of_source.next + 1
        done = take(migration, record)
      end
      took = took or done
    end
  end
end

for _, migration in ipairs(redis.call('ZRANGE', PREPARED, 0, -1)) do
  local record = read(record_key(migration))
  if not record or ENDED[record.state] or record.granted then
    redis.call('ZREM', PREPARED, migration)
  elseif not (record.cancel or record['outcome:source'] or record['outcome:destination']) then
    local rule, why = kept(record)
    if rule then take_back(migration, record, rule, why) else enqueue(migration, record, grant) end
  end
end
for _, migration in ipairs(redis.call('ZRANGE', WAITING, 0, -1)) do
  local record = read(record_key(migration))
  if not record then
    redis.call('ZREM', WAITING, migration)
  elseif waits(migration, record) then
    enqueue(migration, record, admit)
  end
end

table.sort(priorities, function(a, b) return a > b end)
for _, priority in ipairs(priorities) do
  for _, stage in ipairs({ grant, admit }) do take_turns(queues[priority][stage], stage) end
end
return { admitted, granted }
