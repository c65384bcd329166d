-- include _members
-- ARGV: id, epoch. Notes when a session's stream broke; a new session clears it.
if redis.call('HGET', P .. 'node:' .. ARGV[1], 'epoch') == ARGV[2] and redis.call('ZSCORE', P .. 'leases', ARGV[1]) then
  redis.call('ZADD', P .. 'broken', 'NX', now_ms(), ARGV[1])
end
return {}
