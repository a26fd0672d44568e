-- Let go of what is old: now, ttl, most, most bytes. Answers the places that are free, and the
-- rollouts whose process is gone.
local gone, orphans, alive = {}, {}, {}
evict(tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), '', gone)
local held = call('HGETALL', P .. 'local')
for i = 1, #held, 2 do
  local replica = held[i + 1]
  if alive[replica] == nil then alive[replica] = call('EXISTS', P .. 'replica:' .. replica) == 1 end
  if not alive[replica] then
    if call('EXISTS', rollout(held[i])) == 1 then
      orphans[#orphans + 1] = held[i]
    else
      call('HDEL', P .. 'local', held[i])
    end
  end
end
if call('EXISTS', WORK) == 1 then
  for _, consumer in ipairs(call('XINFO', 'CONSUMERS', WORK, GROUP)) do
    local facts = {}
    for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
    if facts['pending'] == 0 and call('EXISTS', P .. 'replica:' .. facts['name']) == 0 then
      call('XGROUP', 'DELCONSUMER', WORK, GROUP, facts['name'])
    end
  end
end
return {gone, orphans}
