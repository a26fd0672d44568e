-- What has changed about a rollout: id, token, record, status, 1 after a new chunk, checkpoint's data,
-- frames and chunks (or nothing), now, ttl, most, most bytes, why it is parked (or nothing).
local id, token, record, status, progress, data, frames, chunks = unpack(ARGV, 2, 9)
local now, ttl, most, most_bytes, parked = unpack(ARGV, 10)
local r, gone = rollout(id), {}
if call('EXISTS', r) == 0 then
  return {call('EXISTS', P .. 'removed:' .. id) == 1 and 0 or 2, gone}
end
if call('HGET', r, 'fence') ~= token then return {0, gone} end
call('HSET', r, 'record', record, 'status', status)
call('HINCRBY', r, 'rev', 1)
if progress == '1' then call('HSET', r, 'tries', 0) end
if data ~= '' then call('HSET', r, 'context', data, 'frames', frames, 'chunks', chunks) end
if parked ~= '' then
  call('XADD', P .. 'parked', 'MAXLEN', '~', 100, '*', 'id', id, 'reason', parked,
    'order', call('HGET', r, 'order') or '')
end
if not is_live(status) then
  finish(id, tonumber(now), tonumber(ttl))
  evict(tonumber(now), tonumber(ttl), tonumber(most), tonumber(most_bytes), '', gone)
end
call('PUBLISH', P .. 'changes', id)
return {1, gone}
