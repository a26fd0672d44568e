-- A rollout for anybody to run: id, owner, record, order, client, most, most of the client.
local id, owner, record, order, client, most, most_of_client = unpack(ARGV, 2)
if call('EXISTS', rollout(id)) == 1 then return 'ok' end
if call('XLEN', WORK) >= tonumber(most) then return 'full' end
if tonumber(call('HGET', P .. 'clients', client) or '0') >= tonumber(most_of_client) then return 'client' end
need_group()
begin(id, owner, record)
local entry = call('XADD', WORK, '*', 'id', id)
call('HSET', rollout(id), 'entry', entry, 'client', client, 'order', order, 'tries', 0)
call('HINCRBY', P .. 'clients', client, 1)
call('PUBLISH', P .. 'news', id)
return 'ok'
