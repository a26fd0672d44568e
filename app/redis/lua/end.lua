-- End a rollout that others run: id, rev that was read, record, status, now, ttl, most, most bytes.
local id, rev, record, status, now, ttl, most, most_bytes = unpack(ARGV, 2)
local r, gone = rollout(id), {}
if not is_live(call('HGET', r, 'status')) or call('HGET', r, 'rev') ~= rev then return {0, gone} end
call('HSET', r, 'record', record, 'status', status)
call('HINCRBY', r, 'rev', 1)
finish(id, tonumber(now), tonumber(ttl))
evict(tonumber(now), tonumber(ttl), tonumber(most), tonumber(most_bytes), '', gone)
call('PUBLISH', P .. 'ended', id)
call('PUBLISH', P .. 'changes', id)
return {1, gone}
