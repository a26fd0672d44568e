-- A sign of life: replica, span until it counts as gone, then id and token of what it runs. Answers
-- how each of them is.
local replica, span, found = ARGV[2], ARGV[3], {}
call('SET', P .. 'replica:' .. replica, 1, 'PX', span)
for i = 4, #ARGV, 2 do
  local r = rollout(ARGV[i])
  local state = 0
  if call('HGET', r, 'fence') == ARGV[i + 1] then
    local entry = call('HGET', r, 'entry')
    if entry then call('XCLAIM', WORK, GROUP, replica, 0, entry, 'JUSTID') end
    state = 1
  elseif call('EXISTS', r) == 0 and call('EXISTS', P .. 'removed:' .. ARGV[i]) == 0 then
    state = 2
  end
  found[#found + 1] = state
end
return found
