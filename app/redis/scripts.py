"""What must happen in Redis at once: Lua, each script behind common functions.

Who may write a rollout is decided here: its hash has a ``fence``, the token of the process that runs it. A
token is put there when a rollout is begun or taken over, and goes when it ends or somebody else ends it.
Whatever comes with another token is refused.

Every script gets the prefix as its first argument. Times are seconds since the epoch, spans milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

FENCED, DONE, MISSING = 0, 1, 2
"""Answers of scripts that write: somebody else has the rollout; done; there is no such rollout."""

_COMMON = """
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
"""

_SCRIPTS: Mapping[str, str] = MappingProxyType(
    {
        # A rollout that the caller runs: id, owner, record, token, replica.
        "add": """
local id, owner, record, token, replica = unpack(ARGV, 2)
if call('EXISTS', P .. 'removed:' .. id) == 1 then return 0 end
if call('EXISTS', rollout(id)) == 1 then
  if call('HGET', rollout(id), 'fence') == token then return 1 end
  return 0
end
begin(id, owner, record)
call('HSET', rollout(id), 'fence', token)
call('HSET', P .. 'local', id, replica)
return 1
""",
        # A rollout for anybody to run: id, owner, record, order, client, most, most of the client.
        "offer": """
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
""",
        # A rollout that some process runs by itself becomes one for anybody to run: id, order, client.
        "adopt": """
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
""",
        # What has changed about a rollout: id, token, record, status, 1 after a new chunk, checkpoint's data,
        # frames and chunks (or nothing), now, ttl, most, most bytes, why it is parked (or nothing).
        "write": """
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
""",
        # Where an artifact's bytes are: id, token (or nothing), name, place, size, now, ttl, most,
        # most bytes, names that go.
        "artifact": """
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
""",
        # End a rollout that others run: id, rev that was read, record, status, now, ttl, most, most bytes.
        "end": """
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
""",
        # Forget a rollout: id, span in which nobody may bring it back.
        "remove": """
local id, gone = ARGV[2], {}
call('SET', P .. 'removed:' .. id, 1, 'PX', ARGV[3])
drop(id, gone)
call('PUBLISH', P .. 'ended', id)
call('PUBLISH', P .. 'changes', id)
return gone
""",
        # Let go of what is old: now, ttl, most, most bytes. Answers the places that are free, and the
        # rollouts whose process is gone.
        "sweep": """
local gone, orphans, alive = {}, {}, {}
evict(tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), '', gone)
local held = call('HGETALL', P .. 'local')
for i = 1, #held, 2 do
  local replica = held[i + 1]
  if alive[replica] == nil then alive[replica] = call('EXISTS', P .. 'replica:' .. replica) == 1 end
  if not alive[replica] then
    if call('EXISTS', rollout(held[i])) == 1 then
      orphans[#orphans + 1] = held[i]
    else
      call('HDEL', P .. 'local', held[i])
    end
  end
end
if call('EXISTS', WORK) == 1 then
  for _, consumer in ipairs(call('XINFO', 'CONSUMERS', WORK, GROUP)) do
    local facts = {}
    for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
    if facts['pending'] == 0 and call('EXISTS', P .. 'replica:' .. facts['name']) == 0 then
      call('XGROUP', 'DELCONSUMER', WORK, GROUP, facts['name'])
    end
  end
end
return {gone, orphans}
""",
        # An owner's records, newest first: owner, most, id to begin behind (or nothing), status (or nothing).
        "list": """
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
""",
        # Bind an idempotency key: its name, what it stands for, the rollout, span until that is accepted.
        "claim": """
local name, value, id, span = unpack(ARGV, 2)
local bound = call('GET', name)
if bound then return bound end
call('SET', name, value, 'PX', span)
call('HSET', P .. 'keyof', id, name)
local r = rollout(id)
if call('EXISTS', r) == 1 then
  call('PERSIST', name)
  local left = call('PTTL', r)
  if left > 0 then call('PEXPIRE', name, left) end
end
return value
""",
        # Free an idempotency key: its name.
        "release_key": """
local bound = call('GET', ARGV[2])
if bound then
  call('DEL', ARGV[2])
  call('HDEL', P .. 'keyof', string.match(bound, '%S+$'))
end
return 1
""",
        # Take rollouts to run: consumer, lease, most, tries, 1 if nothing else runs, 1 to take over as well,
        # beginning of new tokens, ids that the caller has. Answers what was taken, and whether one was left
        # because it must run alone: it was begun twice without finishing a chunk, so it may be what ends
        # processes, and others should not go with it.
        "take": """
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
""",
        # Let go of a rollout that was taken: id, token, consumer, for how long it counts as silent, 1 if the
        # try counts.
        "release": """
local id, token, consumer, idle, counts = unpack(ARGV, 2)
local r = rollout(id)
if call('HGET', r, 'fence') ~= token then return 0 end
call('HDEL', r, 'fence')
if counts == '0' then call('HINCRBY', r, 'tries', -1) end
call('XCLAIM', WORK, GROUP, consumer, 0, call('HGET', r, 'entry'), 'IDLE', idle, 'JUSTID')
call('PUBLISH', P .. 'news', id)
return 1
""",
        # A sign of life: replica, span until it counts as gone, then id and token of what it runs. Answers
        # how each of them is.
        "beat": """
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
""",
        # Write a session down: its key, replica, snapshot, owner, client, when it was made, time to live.
        "keep_session": """
local key, replica, data, owner, client, created, ttl = unpack(ARGV, 2)
local home = call('HGET', key, 'home')
if home and home ~= replica then return 0 end
call('HSET', key, 'home', replica, 'data', data, 'owner', owner, 'client', client, 'created', created)
call('PEXPIRE', key, ttl)
return 1
""",
        # Have a session, unless it is at a server that lives: its key, replica, owner.
        "take_session": """
local key, replica, owner = unpack(ARGV, 2)
if call('HGET', key, 'owner') ~= owner then return {} end
local home = call('HGET', key, 'home')
if home and home ~= replica and call('EXISTS', P .. 'replica:' .. home) == 1 then return {'elsewhere'} end
call('HSET', key, 'home', replica)
local has = call('HMGET', key, 'data', 'client', 'created')
return {'taken', has[1], has[2], has[3]}
""",
        # Let any server have a session: its key, replica.
        "leave_session": """
if call('HGET', ARGV[2], 'home') == ARGV[3] then call('HDEL', ARGV[2], 'home') end
return 1
""",
        # A token of a bucket: its name, tokens a second, most. Answers 0, or microseconds until there is one.
        "rate": """
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local rate, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local has = call('HMGET', ARGV[2], 'tokens', 'at')
local tokens, at = tonumber(has[1] or most), tonumber(has[2] or now)
tokens = math.min(most, tokens + math.max(0, now - at) * rate)
local missing = math.max(0, 1 - tokens)
if missing == 0 then tokens = tokens - 1 end
call('HSET', ARGV[2], 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now))
call('PEXPIRE', ARGV[2], math.ceil(most / rate * 1000) + 1000)
return math.ceil(missing / rate * 1000000)
""",
    }
)

SCRIPTS: Mapping[str, str] = MappingProxyType({name: _COMMON + text for name, text in _SCRIPTS.items()})
"""Every script as it is sent."""


@cache
def digest_of(name: str) -> str:
    """What Redis knows a script by."""
    return hashlib.sha1(SCRIPTS[name].encode()).hexdigest()
