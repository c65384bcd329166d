-- include _members
-- ARGV: id, epoch, moves, reason, release (1: the lease ends too), ms from now within which the lease must end ('' for any),
-- 1 or 0 when an operator orders the node to drain or to go on ('' for neither), 1 if the mass guard holds such an event back.
-- Gives {2} when the state has changed, {1} when it stays, {0} when fenced: a newer session, no lease, or a renewed one.
local id = ARGV[1]
local old = redis.call('HMGET', P .. 'node:' .. id, 'epoch', 'state')
local deadline = redis.call('ZSCORE', P .. 'leases', id)
if old[1] ~= ARGV[2] or not deadline then
  return {0}
end
if ARGV[6] ~= '' and tonumber(deadline) > now_ms() + ARGV[6] then
  return {0}
end
if ARGV[8] == '1' and redis.call('EXISTS', P .. 'guard') == 1 then
  return {1}
end
if ARGV[5] == '1' then
  redis.call('ZREM', P .. 'leases', id)
  redis.call('ZREM', P .. 'broken', id)
  redis.call('HDEL', P .. 'health', id)
end
if ARGV[7] ~= '' then redis.call('HSET', P .. 'node:' .. id, 'ordered', ARGV[7]) end
local state = after(ARGV[3], old[2])
if state and (state ~= old[2] or ARGV[7] ~= '') then
  enter(id, state, ARGV[4])
  return {2}
end
return {1}
