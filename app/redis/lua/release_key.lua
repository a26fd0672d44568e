-- Free an idempotency key: its name.
local bound = call('GET', ARGV[2])
if bound then
  call('DEL', ARGV[2])
  call('HDEL', P .. 'keyof', string.match(bound, '%S+$'))
end
return 1
