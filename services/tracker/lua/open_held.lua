-- Slot of one node. KEYS: meta, held, images. ARGV: epoch, incarnation, bucket.
-- Gives {-1} when a newer session has opened it, {1, count, xor, age ms} when the incarnation's holdings are there, else {0, old
-- epoch, old bucket, number of digests, digests..., images...}: what an earlier incarnation held and is void now.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'incarnation', 'bucket', 'count', 'xor', 'reset_ms')
if tonumber(meta[1] or 0) > tonumber(ARGV[1]) then
  return {'-1'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if meta[2] == ARGV[2] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
  return {'1', meta[4], meta[5], string.format('%.0f', now - meta[6])}
end
local digests, images = redis.call('SMEMBERS', KEYS[2]), redis.call('SMEMBERS', KEYS[3])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'incarnation', ARGV[2], 'bucket', ARGV[3],
  'count', 0, 'xor', string.rep('0', 16), 'reset_ms', string.format('%.0f', now))
local void = {'0', meta[1] or '0', meta[3] or '', tostring(#digests)}
for _, digest in ipairs(digests) do void[#void + 1] = digest end
for _, image in ipairs(images) do void[#void + 1] = image end
return void
