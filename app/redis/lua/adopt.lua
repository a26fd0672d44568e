-- A rollout that some process runs by itself becomes one for anybody to run: id, order, client.
local id, order, client = unpack(ARGV, 2)
local r = rollout(id)
if not is_live(call('HGET', r, 'status')) or call('HEXISTS', r, 'entry') == 1 then return 0 end
need_group()
call('HSET', r, 'entry', call('XADD', WORK, '*', 'id', id), 'client', client, 'order', order, 'tries', 0)
call('HINCRBY', P .. 'clients', client, 1)
call('HDEL', r, 'fence')
call('HDEL', P .. 'local', id)
call('PUBLISH', P .. 'ended', id)
call('PUBLISH', P .. 'news', id)
return 1
