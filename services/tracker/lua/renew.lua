-- include _members
-- ARGV: lease ttl ms, then id, epoch, health for each lease. Gives 1 or 0 (fenced) for each.
local deadline, renewed = now_ms() + ARGV[1], {}
for i = 2, #ARGV, 3 do
  local id = ARGV[i]
  local live = redis.call('HGET', P .. 'node:' .. id, 'epoch') == ARGV[i + 1] and redis.call('ZSCORE', P .. 'leases', id)
  if live then
    redis.call('ZADD', P .. 'leases', deadline, id)
    redis.call('HSET', P .. 'health', id, ARGV[i + 2])
  end
  renewed[#renewed + 1] = live and 1 or 0
end
return renewed
