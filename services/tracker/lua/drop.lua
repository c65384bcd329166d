-- Slot of one digest or image. KEYS: entries (node -> value), index of buckets (digests only). ARGV: node, epoch, bucket. Entries that
-- a newer epoch wrote stay.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old or tonumber(old:match('^%d+')) > tonumber(ARGV[2]) then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
if KEYS[2] and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SREM', KEYS[2], ARGV[3])
end
return 1
