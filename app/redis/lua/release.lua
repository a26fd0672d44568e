-- Let go of a rollout that was taken: id, token, consumer, for how long it counts as silent, 1 if the
-- try counts.
local id, token, consumer, idle, counts = unpack(ARGV, 2)
local r = rollout(id)
if call('HGET', r, 'fence') ~= token then return 0 end
call('HDEL', r, 'fence')
if counts == '0' then call('HINCRBY', r, 'tries', -1) end
call('XCLAIM', WORK, GROUP, consumer, 0, call('HGET', r, 'entry'), 'IDLE', idle, 'JUSTID')
call('PUBLISH', P .. 'news', id)
return 1
