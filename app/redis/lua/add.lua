-- A rollout that the caller runs: id, owner, record, token, replica.
local id, owner, record, token, replica = unpack(ARGV, 2)
if call('EXISTS', P .. 'removed:' .. id) == 1 then return 0 end
if call('EXISTS', rollout(id)) == 1 then
  if call('HGET', rollout(id), 'fence') == token then return 1 end
  return 0
end
begin(id, owner, record)
call('HSET', rollout(id), 'fence', token)
call('HSET', P .. 'local', id, replica)
return 1
