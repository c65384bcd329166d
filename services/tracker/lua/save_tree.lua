-- Slot of one digest's relay tree. KEYS: tree (field -> value; '#' version). ARGV: version that the change is based on, ttl seconds,
-- number of fields to set, then field and value for each, then fields to remove. Gives {'1', new version}, or {'0'} when somebody
-- else has changed it meanwhile.
if (redis.call('HGET', KEYS[1], '#') or '0') ~= ARGV[1] then
  return {'0'}
end
local first_removed = 4 + 2 * ARGV[3]
for i = 4, first_removed - 1, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
for i = first_removed, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
local version = tostring(ARGV[1] + 1)
redis.call('HSET', KEYS[1], '#', version)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {'1', version}
