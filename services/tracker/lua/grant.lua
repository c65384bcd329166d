-- include _members
-- ARGV: fresh generation, lease ttl ms, id, incarnation, then moves and reason for a new incarnation, for the same one, and for the
-- same one that an operator has ordered to drain, 1 if such an order is remembered where Redis has lost the node, fields...
-- Gives {epoch}. Epochs follow the clock so that they grow even across a flush.
generation(ARGV[1])
local id, key, now = ARGV[3], P .. 'node:' .. ARGV[3], now_ms()
local old = redis.call('HMGET', key, 'epoch', 'incarnation', 'state', 'reason', 'since', 'flaps', 'ordered')
local same = old[2] == ARGV[4]
local ordered = (old[2] and (same and old[7] or '0')) or ARGV[11]
local how = ordered == '1' and 9 or (same and 7 or 5)
local state, reason, since = after(ARGV[how], old[3] or 'absent'), ARGV[how + 1], text(now)
if same and state == old[3] then
  reason, since = old[4], old[5]
end
local epoch = text(math.max((tonumber(old[1]) or 0) + 1, now))
redis.call('DEL', key)
redis.call('HSET', key, 'id', id, 'epoch', epoch, 'sequence', 0, 'incarnation', ARGV[4],
  'state', state, 'reason', reason, 'since', since, 'flaps', same and old[6] or 0, 'ordered', ordered, unpack(ARGV, 12))
redis.call('SADD', P .. 'ids', id)
redis.call('ZADD', P .. 'leases', now + ARGV[2], id)
redis.call('HDEL', P .. 'health', id)
if not same then redis.call('HDEL', P .. 'experience', id) end
redis.call('ZREM', P .. 'broken', id)
redis.call('SREM', P .. 'suspects', id)
publish(id)
return {epoch}
