-- Where an artifact's bytes are: id, token (or nothing), name, place, size, now, ttl, most,
-- most bytes, names that go.
local id, token, name, place, size, now, ttl, most, most_bytes = unpack(ARGV, 2, 10)
local r, gone = rollout(id), {}
local status = call('HGET', r, 'status')
if not status then return {call('EXISTS', P .. 'removed:' .. id) == 1 and 0 or 2, gone} end
if is_live(status) and call('HGET', r, 'fence') ~= token then return {0, gone} end
local function replace(old)
  local entry = call('HGET', index(id), old)
  if not entry then return end
  call('HDEL', index(id), old)
  call('DECRBY', P .. 'bytes', size_of(entry))
  call('HINCRBY', P .. 'sizes', id, -size_of(entry))
  if place_of(entry) ~= place then
    call('UNLINK', P .. 'blob:' .. place_of(entry))
    gone[#gone + 1] = place_of(entry)
  end
end
replace(name)
for i = 11, #ARGV do replace(ARGV[i]) end
call('HSET', index(id), name, size .. ':' .. place)
call('INCRBY', P .. 'bytes', size)
call('HINCRBY', P .. 'sizes', id, size)
if is_live(status) then
  call('PERSIST', P .. 'blob:' .. place)
else
  local left = call('PTTL', r)
  if left > 0 then
    call('PEXPIRE', P .. 'blob:' .. place, left)
    call('PEXPIRE', index(id), left)
  end
end
evict(tonumber(now), tonumber(ttl), tonumber(most), tonumber(most_bytes), id, gone)
return {1, gone}
