-- include _members
-- ARGV: fresh generation, lease ttl ms, id, incarnation, moves for the same incarnation, moves for another one, reason, fields...
-- Gives {epoch}. Epochs follow the clock so that they grow even across a flush.
generation(ARGV[1])
local id, key, now = ARGV[3], P .. 'node:' .. ARGV[3], now_ms()
local old = redis.call('HMGET', key, 'epoch', 'incarnation', 'state', 'reason', 'since', 'flaps')
local same = old[2] == ARGV[4]
local state = after(same and ARGV[5] or ARGV[6], old[3] or 'absent')
local reason, since = ARGV[7], text(now)
if same and state == old[3] then
  reason, since = old[4], old[5]
end
local epoch = text(math.max((tonumber(old[1]) or 0) + 1, now))
redis.call('DEL', key)
redis.call('HSET', key, 'id', id, 'epoch', epoch, 'sequence', 0, 'incarnation', ARGV[4],
  'state', state, 'reason', reason, 'since', since, 'flaps', same and old[6] or 0, unpack(ARGV, 8))
redis.call('SADD', P .. 'ids', id)
redis.call('ZADD', P .. 'leases', now + ARGV[2], id)
redis.call('HDEL', P .. 'health', id)
if not same then redis.call('HDEL', P .. 'experience', id) end
redis.call('ZREM', P .. 'broken', id)
redis.call('SREM', P .. 'suspects', id)
publish(id)
return {epoch}
