-- Which of the commands that workers give the user of this connection may not give. Leaves nothing: all is done to one key
-- of no one's, which is gone at the end, and in one step.
--
--   KEYS[1]  anything under our prefix that is not there
--
-- → {commands refused}
local key = KEYS[1]
local tried = {
  { 'GET', key }, { 'SET', key, '1' }, { 'EXISTS', key }, { 'PEXPIRE', key, 1000 }, { 'EXPIRE', key, 1 }, { 'DEL', key },
  { 'HSET', key, 'a', '1' }, { 'HGET', key, 'a' }, { 'HSETNX', key, 'a', '1' }, { 'HMGET', key, 'a' }, { 'HGETALL', key },
  { 'HKEYS', key }, { 'HVALS', key }, { 'HINCRBY', key, 'a', 1 }, { 'HDEL', key, 'a' },
  { 'SADD', key, 'a' }, { 'SISMEMBER', key, 'a' }, { 'SMEMBERS', key }, { 'SCARD', key }, { 'SREM', key, 'a' },
  { 'ZADD', key, 1, 'a' }, { 'ZRANGE', key, 0, -1 }, { 'ZREVRANGE', key, 0, -1 }, { 'ZRANGEBYSCORE', key, 0, 1 },
  { 'ZREM', key, 'a' },
  { 'LPUSH', key, 'a' }, { 'LLEN', key }, { 'RPOP', key }, { 'RPUSH', key, 'a' }, { 'DEL', key },
  { 'XADD', key, '*', 'a', '1' }, { 'DEL', key }, { 'TIME' },
}
local refused = {}
for _, command in ipairs(tried) do
  local answer = redis.pcall(unpack(command))
  -- 6.2, 7 and Valkey word it differently; what else can go wrong here is that a command before was refused.
  if type(answer) == 'table' and answer.err then
    local said = string.lower(answer.err)
    if string.find(said, 'noperm') or string.find(said, "can't run") or string.find(said, "can't access")
      or string.find(said, 'no permission') then
      table.insert(refused, command[1])
    end
  end
end
return refused
