-- A token of a bucket: its name, tokens a second, most. Answers 0, or microseconds until there is one.
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
