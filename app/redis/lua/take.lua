-- Take rollouts to run: consumer, lease, most, tries, 1 if nothing else runs, 1 to take over as well,
-- beginning of new tokens, ids that the caller has. Answers what was taken, and whether one was left
-- because it must run alone: it was begun twice without finishing a chunk, so it may be what ends
-- processes, and others should not go with it.
local consumer, lease, most, limit, alone, reclaim, tokens = unpack(ARGV, 2, 8)
most, limit = tonumber(most), tonumber(limit)
local mine, taken, left = {}, {}, 0
for i = 9, #ARGV do mine[ARGV[i]] = true end
need_group()

local function try(entry, fields)
  local id = fields[2]
  local r = rollout(id)
  if mine[id] then return end
  if not is_live(call('HGET', r, 'status')) or call('HGET', r, 'entry') ~= entry then
    call('XACK', WORK, GROUP, entry)
    call('XDEL', WORK, entry)
    return
  end
  local tries = tonumber(call('HGET', r, 'tries') or '0')
  local suspect = tries + 1 >= math.min(3, limit) and limit > 1 and tries > 0
  if suspect and tries < limit and (alone == '0' or #taken > 0) then
    call('XCLAIM', WORK, GROUP, consumer, 0, entry, 'IDLE', lease, 'JUSTID')
    left = 1
    return
  end
  local token, before = tokens .. entry, call('HGET', r, 'holder')
  call('HSET', r, 'fence', token, 'holder', consumer)
  call('HINCRBY', r, 'tries', 1)
  local has = call('HMGET', r, 'record', 'order', 'context', 'frames', 'chunks')
  taken[#taken + 1] = {id, entry, token, tries, before and 1 or 0, suspect and 1 or 0,
    has[1], has[2], has[3] or '', has[4] or '', has[5] or ''}
  if suspect then most = 0 end
end

if reclaim == '1' then
  local cursor = '0-0'
  repeat
    local room = math.max(1, most - #taken)
    local reply = call('XAUTOCLAIM', WORK, GROUP, consumer, lease, cursor, 'COUNT', room)
    cursor = reply[1]
    for _, item in ipairs(reply[2]) do
      if item then
        if #taken < most then
          try(item[1], item[2])
        elseif not mine[item[2][2]] then
          call('XCLAIM', WORK, GROUP, consumer, 0, item[1], 'IDLE', lease, 'JUSTID')
        end
      end
    end
  until cursor == '0-0' or #taken >= most
end
while #taken < most and left == 0 do
  local reply = call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', most - #taken, 'STREAMS', WORK, '>')
  if not reply then break end
  for _, item in ipairs(reply[1][2]) do try(item[1], item[2]) end
end
return {taken, left}
