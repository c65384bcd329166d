-- Slot of one digest or image. KEYS: entries (node -> value), index of buckets (digests only). ARGV: node, epoch, value, ttl seconds,
-- bucket. A value starts with the epoch that wrote it; it never replaces one of a newer epoch.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and tonumber(old:match('^%d+')) > tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
if KEYS[2] then
  redis.call('SADD', KEYS[2], ARGV[5])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
return 1
