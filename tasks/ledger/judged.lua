-- What a tick of a policy found. Each due moment is judged once, whoever comes first: the judgement counts on what was
-- judged before it, so it holds only while that is still the latest.
--
--   ARGV  retention, P, due before (ms; 0: none), due (ms), over, imbalance, reason
--
-- → OK | TAKEN (somebody else has judged meanwhile)
local key = policy_key(ARGV[2])
if tonumber(redis.call('HGET', key, 'due') or 0) ~= tonumber(ARGV[3]) then return 'TAKEN' end
redis.call('HSET', key, 'due', ARGV[4], 'judged', now, 'over', ARGV[5], 'imbalance', ARGV[6], 'reason', ARGV[7])
return 'OK'
