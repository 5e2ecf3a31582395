-- Handover facts that a host's journals vouch for, told again so that Redis may forget. Only of guests that are known:
-- a fact about a guest that is gone would have no owner.
--
--   ARGV  retention, host, facts: [[guest, "EPOCH.FACT.MIGRATION"], …]
for _, told in ipairs(cjson.decode(ARGV[3])) do
  if redis.call('EXISTS', guest_key(told[1])) == 1 then
    redis.call('HSETNX', guest_key(told[1]) .. ':handover', told[2], ARGV[2])
  end
end
return 'OK'
