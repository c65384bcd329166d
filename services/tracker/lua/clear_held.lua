-- Slot of one node. KEYS: meta, held, images. ARGV: epoch. Gives {bucket, number of digests, digests..., images...}, nothing when a
-- newer session has opened it.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'bucket')
if not meta[1] or tonumber(meta[1]) > tonumber(ARGV[1]) then
  return {}
end
local digests, images = redis.call('SMEMBERS', KEYS[2]), redis.call('SMEMBERS', KEYS[3])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
local all = {meta[2], tostring(#digests)}
for _, digest in ipairs(digests) do all[#all + 1] = digest end
for _, image in ipairs(images) do all[#all + 1] = image end
return all
