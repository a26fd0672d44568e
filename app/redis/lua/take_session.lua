-- Have a session, unless it is at a server that lives: its key, replica, owner.
local key, replica, owner = unpack(ARGV, 2)
if call('HGET', key, 'owner') ~= owner then return {} end
local home = call('HGET', key, 'home')
if home and home ~= replica and call('EXISTS', P .. 'replica:' .. home) == 1 then return {'elsewhere'} end
call('HSET', key, 'home', replica)
local has = call('HMGET', key, 'data', 'client', 'created')
return {'taken', has[1], has[2], has[3]}
