-- Let any server have a session: its key, replica.
if call('HGET', ARGV[2], 'home') == ARGV[3] then call('HDEL', ARGV[2], 'home') end
return 1
