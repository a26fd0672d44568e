-- What every script begins with. The first argument is the prefix of all names.
local P = ARGV[1]
local WORK, GROUP = P .. 'work', 'workers'
local call = redis.call

local function rollout(id) return P .. 'rollout:' .. id end
local function index(id) return P .. 'artifacts:' .. id end
local function is_live(status) return status == 'queued' or status == 'running' end
local function place_of(entry) return string.match(entry, '^%d+:(.*)$') end
local function size_of(entry) return tonumber(string.match(entry, '^(%d+):')) end

local function need_group()
  if call('EXISTS', WORK) == 0 then call('XGROUP', 'CREATE', WORK, GROUP, '0', 'MKSTREAM') end
end

-- The rollout waits for nobody any more.
local function settle(id)
  local r = rollout(id)
  local entry = call('HGET', r, 'entry')
  if entry then
    call('XACK', WORK, GROUP, entry)
    call('XDEL', WORK, entry)
    local client = call('HGET', r, 'client')
    if client and call('HINCRBY', P .. 'clients', client, -1) <= 0 then
      call('HDEL', P .. 'clients', client)
    end
  end
  call('HDEL', P .. 'local', id)
  call('HDEL', r, 'entry', 'client', 'order', 'context', 'frames', 'chunks', 'fence', 'holder')
end

local function drop(id, gone)
  settle(id)
  local owner = call('HGET', P .. 'owners', id)
  if owner then call('ZREM', P .. 'owner:' .. owner, id) end
  local key = call('HGET', P .. 'keyof', id)
  if key then
    local bound = call('GET', key)
    if bound and string.sub(bound, -#id) == id then call('DEL', key) end
  end
  for _, entry in ipairs(call('HVALS', index(id))) do
    local place = place_of(entry)
    call('UNLINK', P .. 'blob:' .. place)
    gone[#gone + 1] = place
  end
  local size = call('HGET', P .. 'sizes', id)
  if size then call('DECRBY', P .. 'bytes', size) end
  call('HDEL', P .. 'sizes', id)
  call('HDEL', P .. 'owners', id)
  call('HDEL', P .. 'keyof', id)
  call('ZREM', P .. 'finished', id)
  call('UNLINK', rollout(id), index(id))
end

-- Let go of finished rollouts that are too old, too many or too large, the oldest first.
local function evict(now, ttl, most, most_bytes, keep, gone)
  local finished = P .. 'finished'
  while true do
    local first = call('ZRANGE', finished, 0, 1, 'WITHSCORES')
    local count, id, at = call('ZCARD', finished), first[1], first[2]
    if id and id == keep then id, at = first[3], first[4] end
    if not id then return end
    if call('ZSCORE', finished, keep) then count = count - 1 end
    local bytes = tonumber(call('GET', P .. 'bytes') or '0')
    if tonumber(at) >= now - ttl and count <= most and bytes <= most_bytes then return end
    drop(id, gone)
  end
end

-- It has ended. Should no server be left to let go of it, Redis does so by itself.
local function finish(id, now, ttl)
  settle(id)
  call('ZADD', P .. 'finished', now, id)
  local spare = math.floor(ttl * 1100) + 60000
  call('PEXPIRE', rollout(id), spare)
  call('PEXPIRE', index(id), spare)
  for _, entry in ipairs(call('HVALS', index(id))) do
    call('PEXPIRE', P .. 'blob:' .. place_of(entry), spare)
  end
  local key = call('HGET', P .. 'keyof', id)
  if key then call('PEXPIRE', key, spare) end
end

local function begin(id, owner, record)
  call('HSET', rollout(id), 'record', record, 'owner', owner, 'status', 'queued', 'rev', 1)
  call('ZADD', P .. 'owner:' .. owner, call('INCR', P .. 'sequence'), id)
  call('HSET', P .. 'owners', id, owner)
  local key = call('HGET', P .. 'keyof', id)
  if key then call('PERSIST', key) end
end
