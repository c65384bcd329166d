-- include _held
-- ARGV: epoch, incarnation, reset, ttl seconds, number of digests, digests..., image names...
-- Gives {'0'} when fenced, else {'1', number of digests, digests..., images...}: what a reset makes void. That stays
-- in held until unhold, so that an announcement which broke off can be made again.
if fenced then
  return {'0'}
end
local first_image, named = 6 + ARGV[5], {}
for i = 6, first_image - 1 do
  add(ARGV[i])
  named[ARGV[i]] = true
end
for i = first_image, #ARGV do
  redis.call('SADD', KEYS[3], ARGV[i])
  named[ARGV[i]] = true
end
save()
local void = {'1', '0'}
if ARGV[3] == '1' then
  for _, digest in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    if not named[digest] then void[#void + 1] = digest end
  end
  void[2] = tostring(#void - 2)
  for _, image in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    if not named[image] then void[#void + 1] = image end
  end
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'reset_ms', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[4]) end
return void
