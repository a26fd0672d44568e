-- Write a session down: its key, replica, snapshot, owner, client, when it was made, time to live.
local key, replica, data, owner, client, created, ttl = unpack(ARGV, 2)
local home = call('HGET', key, 'home')
if home and home ~= replica then return 0 end
call('HSET', key, 'home', replica, 'data', data, 'owner', owner, 'client', client, 'created', created)
call('PEXPIRE', key, ttl)
return 1
