-- include _members
-- ARGV: id, reporter, window ms. Notes that a gateway met a failure; gives {number of distinct reporters in the window}.
local key, now = P .. 'reports:' .. ARGV[1], now_ms()
redis.call('ZADD', key, now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', key, '-inf', now - ARGV[3])
redis.call('PEXPIRE', key, ARGV[3])
return {redis.call('ZCARD', key)}
