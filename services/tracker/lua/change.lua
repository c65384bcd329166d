-- include _members
-- ARGV: id, epoch, moves, reason, release (1: the lease ends too). Gives {1}, or {0} when fenced.
local id = ARGV[1]
local old = redis.call('HMGET', P .. 'node:' .. id, 'epoch', 'state')
if old[1] ~= ARGV[2] or not redis.call('ZSCORE', P .. 'leases', id) then
  return {0}
end
if ARGV[5] == '1' then
  redis.call('ZREM', P .. 'leases', id)
  redis.call('HDEL', P .. 'health', id)
end
local state = after(ARGV[3], old[2])
if state and state ~= old[2] then
  enter(id, state, ARGV[4])
end
return {1}
