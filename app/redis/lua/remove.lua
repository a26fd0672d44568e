-- Forget a rollout: id, span in which nobody may bring it back.
local id, gone = ARGV[2], {}
call('SET', P .. 'removed:' .. id, 1, 'PX', ARGV[3])
drop(id, gone)
call('PUBLISH', P .. 'ended', id)
call('PUBLISH', P .. 'changes', id)
return gone
