-- Put before the scripts that change what a node holds. KEYS: meta, held, images. ARGV: epoch, incarnation, ...
-- count and xor of the digests in held are kept in meta with every change.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'incarnation', 'count', 'xor')
local fenced = meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2]
local count = tonumber(meta[3] or 0)
local xor = meta[4] or string.rep('0', 16)
local high, low = tonumber(xor:sub(1, 8), 16), tonumber(xor:sub(9), 16)

local function fold(digest, step)
  count = count + step
  high = bit.bxor(high, tonumber(digest:sub(1, 8), 16))
  low = bit.bxor(low, tonumber(digest:sub(9, 16), 16))
end

local function add(digest)
  if redis.call('SADD', KEYS[2], digest) == 1 then fold(digest, 1) end
end

local function remove(digest)
  if redis.call('SREM', KEYS[2], digest) == 1 then fold(digest, -1) end
end

local function save()
  redis.call('HSET', KEYS[1], 'count', count, 'xor', bit.tohex(high) .. bit.tohex(low))
end
