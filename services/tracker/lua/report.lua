-- include _members
-- ARGV: window ms, reporter, ids. Notes that a gateway met failures; gives for each node the distinct reporters in the window.
local now, counts = now_ms(), {}
for i = 3, #ARGV do
  local key = P .. 'reports:' .. ARGV[i]
  redis.call('ZADD', key, now, ARGV[2])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[1])
  redis.call('PEXPIRE', key, ARGV[1])
  counts[#counts + 1] = redis.call('ZCARD', key)
end
return counts
