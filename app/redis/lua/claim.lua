-- Bind an idempotency key: its name, what it stands for, the rollout, span until that is accepted.
local name, value, id, span = unpack(ARGV, 2)
local bound = call('GET', name)
if bound then return bound end
call('SET', name, value, 'PX', span)
call('HSET', P .. 'keyof', id, name)
local r = rollout(id)
if call('EXISTS', r) == 1 then
  call('PERSIST', name)
  local left = call('PTTL', r)
  if left > 0 then call('PEXPIRE', name, left) end
end
return value
