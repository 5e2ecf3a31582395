-- An offer, or a refusal, of one side. Only the holder of the side's claim may write it, only while the attempt lives.
--
--   KEYS[1]  migration:M         hash    reads epoch, state, claim:SIDE; writes offer:SIDE, offer-nonce:SIDE | refusal:SIDE
--   KEYS[2]  migration:M:events  stream  wakes the peer
--   ARGV     side, nonce, epoch, 'offer' | 'refusal', text
--
-- → OK | GONE (Redis forgot the record, or its last seconds; the worker writes them back) | FENCED (another epoch, or another holder) | ENDED
local side, nonce, epoch, what, text = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local record = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'claim:' .. side)
if not (record[1] and record[2] and record[3]) then return 'GONE' end
if record[1] ~= epoch or record[3] ~= nonce then return 'FENCED' end
if record[2] == 'completed' or record[2] == 'failed' or record[2] == 'cancelled' then return 'ENDED' end
redis.call('HSET', KEYS[1], what .. ':' .. side, text, what .. '-nonce:' .. side, nonce)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'event', what, 'side', side)
return 'OK'
