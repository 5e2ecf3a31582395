-- What every script of the ledger begins with. Times are the server's, in milliseconds since 1970: hosts' clocks differ.
--
--   KEYS[1]  the prefix; all keys lie under it (one primary, no cluster: facts that change together must be atomic)
--   ARGV[1]  milliseconds that a record outlives its end
--
--   hosts                   set     every H that was heard of
--   host:H                  hash    what H offers; lease:ROLE (ms): that role's worker was alive until then
--   residents:H             hash    G → bytes
--   guests                  set     every G
--   guest:G                 hash    host, epoch, bytes, active (the migration that has it, or ''), seen (ms), rules (JSON),
--                                   load (cores); of its last move: moved (ms), dirty (bytes/s)
--   guest:G:gone            string  the host on which it was just stopped: older words of that host are not believed
--   migration:M             hash    the record
--   migration:M:events      stream  wakes whoever waits on the record
--   migrations, waiting     zset    M by creation time
--   open                    set     M not ended, or still holding a slot
--   slots:H:ROLE            set     M admitted, until that side has ended: at most H's slots, and `ahead` more that prepare
--   streams:H:ROLE          set     M of these that were let onto H's link: at most H's slots
--   link:L:WAY              hash    M → bytes/s that it was given of the shared link L; WAY: up (from its hosts), down
--   prepared                zset    M admitted and not let onto the links yet, by creation time
--   served                  hash    H → its mark in bytes, by which sources share; '': where the latest one stood
--   measured                hash    H → bytes/s that a stream from it or to it reached lately
--   overheads               hash    H → JSON: of its last nine moves, ms on the links beside what was sent
--   looked                  string  while it is there, somebody has just looked whether anything can be admitted
--   looked:over             string  while it is there, somebody has just looked the whole record over
--   reserved:H              hash    M → bytes
--   blockers                hash    guest:G | host:H (neither leaves nor comes) | cordon:H (nobody comes) → JSON: reason,
--                                   since (ms), expires (ms, or 0: never)
--   jobs                    zset    J by creation time
--   jobs:open               set     J not ended
--   job:J                   hash    kind (evacuation | rebalance | restore; none: evacuation), hosts (JSON: those that it empties
--                                   or brings guests back to), request (JSON), deadline (ms, or ''), created, state, reason,
--                                   stepped, cancel, gave_way (the job that a rebalancing gave way to), finished
--   job:J:guests            hash    G → how it stands (JSON)
--   job:J:moves             hash    M that it asked for → G
--   job:J:turn              string  while it is there, somebody has just taken a step of it
--   policy:P                hash    of a policy by which guests are spread out: due (ms: the moment of its calendar that was
--                                   judged last), judged (ms), over (ticks above its threshold), imbalance, reason; job
--                                   (that it began last), acted (ms: when)
--
-- migration:M has: guest, source, destination, memory, capabilities, parameters, priority, created, expires, job (that asked
-- for it), state, epoch, admitted, granted (ms: let onto the links), rate (bytes/s that it was given there), crosses (JSON:
-- the link:L:WAY), off_links (ms: its share of these was given back, both its hosts being silent), rung, restored, waiting (why it waits), cancel (ms), kept, kept_why (taken back while
-- it prepared: the rule and the sentence that it ends with), finished, reason, message; and for each side: claim:SIDE (a
-- nonce), claimed:SIDE, lease:SIDE, progress:SIDE (JSON), outcome:SIDE; offers as in workers/pairing/publish.lua.
local prefix = KEYS[1]
local retention = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local ENDED = { completed = true, failed = true, cancelled = true }
local SIDES = { 'source', 'destination' }

local function host_key(host) return prefix .. 'host:' .. host end
local function residents_key(host) return prefix .. 'residents:' .. host end
local function guest_key(guest) return prefix .. 'guest:' .. guest end
local function gone_key(guest) return prefix .. 'guest:' .. guest .. ':gone' end
local function record_key(migration) return prefix .. 'migration:' .. migration end
local function events_key(migration) return prefix .. 'migration:' .. migration .. ':events' end
local function slots_key(host, side) return prefix .. 'slots:' .. host .. ':' .. side end
local function streams_key(host, side) return prefix .. 'streams:' .. host .. ':' .. side end
local function reserved_key(host) return prefix .. 'reserved:' .. host end
local HOSTS, GUESTS, OPEN = prefix .. 'hosts', prefix .. 'guests', prefix .. 'open'
local MIGRATIONS, WAITING, PREPARED = prefix .. 'migrations', prefix .. 'waiting', prefix .. 'prepared'
local BLOCKERS, MEASURED, OVERHEADS = prefix .. 'blockers', prefix .. 'measured', prefix .. 'overheads'
local JOBS, OPEN_JOBS = prefix .. 'jobs', prefix .. 'jobs:open'
local ENDED_JOB = { completed = true, partial = true, failed = true, cancelled = true }

local function job_key(job) return prefix .. 'job:' .. job end
local function job_guests_key(job) return prefix .. 'job:' .. job .. ':guests' end
local function job_moves_key(job) return prefix .. 'job:' .. job .. ':moves' end

-- Records of before there were others are evacuations.
local function job_kind(record) return record.kind or 'evacuation' end

local function policy_key(policy) return prefix .. 'policy:' .. policy end

-- A hash as a table; nil when there is none.
local function read(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then return nil end
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function event(migration, name)
  redis.call('XADD', events_key(migration), 'MAXLEN', '~', 1000, '*', 'event', name)
end

local function total(key)
  local sum = 0
  for _, bytes in ipairs(redis.call('HVALS', key)) do sum = sum + tonumber(bytes) end
  return sum
end

-- A guest that is on this host no more, nor anywhere else.
local function forget_guest(guest, host)
  redis.call('HDEL', residents_key(host), guest)
  redis.call('DEL', guest_key(guest), guest_key(guest) .. ':handover')
  redis.call('SREM', GUESTS, guest)
end

-- What an operator said of this subject, while it holds.
local function blocker(subject)
  local said = redis.call('HGET', BLOCKERS, subject)
  local read = said and cjson.decode(said)
  if read and (read.expires == 0 or read.expires > now) then return read end
end

-- Let nobody come to these hosts; a cordon that is there stays.
local function close_hosts(hosts, reason)
  for _, host in ipairs(hosts) do
    if not blocker('cordon:' .. host) then
      redis.call('HSET', BLOCKERS, 'cordon:' .. host, cjson.encode({ reason = reason, since = now, expires = 0 }))
    end
  end
end

-- Off the links: somebody else may send. Its slots are kept until each side has let go of memory.
local function leave_links(migration, record)
  for _, side in ipairs(SIDES) do redis.call('SREM', streams_key(record[side], side), migration) end
  for _, link in ipairs(cjson.decode(record.crosses or '[]')) do redis.call('HDEL', prefix .. link, migration) end
end

local function release(migration, record, side)
  redis.call('SREM', slots_key(record[side], side), migration)
  redis.call('SREM', streams_key(record[side], side), migration)
  if side == 'destination' then redis.call('HDEL', reserved_key(record.destination), migration) end
end

-- A record leaves `open` with its last slot.
local function close(migration, record)
  for _, side in ipairs(SIDES) do
    if redis.call('SISMEMBER', slots_key(record[side], side), migration) == 1 then return end
  end
  redis.call('SREM', OPEN, migration)
end

-- Write the final state. Only ever called on a record that has none; the slots of sides at work stay theirs.
local function finalise(migration, record, state, reason, message)
  redis.call('HSET', record_key(migration), 'state', state, 'finished', now, 'reason', reason, 'message', message)
  redis.call('HDEL', record_key(migration), 'waiting')
  redis.call('ZREM', WAITING, migration)
  redis.call('ZREM', PREPARED, migration)
  leave_links(migration, record)
  local guest = read(guest_key(record.guest))
  if guest and guest.active == migration then
    redis.call('HSET', guest_key(record.guest), 'active', '', 'seen', now)
    if state == 'completed' and guest.epoch == record.epoch then
      redis.call('HSET', guest_key(record.guest), 'host', record.destination, 'moved', now)
      redis.call('HDEL', residents_key(guest.host), record.guest)
      redis.call('HSET', residents_key(record.destination), record.guest, record.memory)
      redis.call('HDEL', reserved_key(record.destination), migration)
    end
  end
  for _, side in ipairs(SIDES) do
    if not record['claim:' .. side] or record['outcome:' .. side] then release(migration, record, side) end
  end
  close(migration, record)
  event(migration, state)
  redis.call('PEXPIRE', record_key(migration), retention)
  redis.call('PEXPIRE', events_key(migration), retention)
end
