-- An owner's records, newest first: owner, most, id to begin behind (or nothing), status (or nothing).
local owner, most, after, status = unpack(ARGV, 2)
local mine, found, start = P .. 'owner:' .. owner, {}, 0
if after ~= '' then
  local rank = call('ZREVRANK', mine, after)
  if not rank then return found end
  start = rank + 1
end
while #found < tonumber(most) do
  local ids = call('ZREVRANGE', mine, start, start + 99)
  if #ids == 0 then return found end
  start = start + #ids
  for _, id in ipairs(ids) do
    local has = call('HMGET', rollout(id), 'record', 'status')
    if has[1] and (status == '' or has[2] == status) and #found < tonumber(most) then
      found[#found + 1] = has[1]
    end
  end
end
return found
