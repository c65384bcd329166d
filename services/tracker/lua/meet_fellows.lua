-- KEYS: trackers (address -> ms until which it counts as live). ARGV: own address, ms for which a sign of life counts; 0: it leaves.
-- Gives the addresses of all that are live.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZRANGE', KEYS[1], 0, -1)
