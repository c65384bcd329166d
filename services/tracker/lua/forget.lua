-- include _members
-- ARGV: id, epoch. Forgets a node that is down under that epoch. Gives {1}, or {0} when it has come back.
local id, key = ARGV[1], P .. 'node:' .. ARGV[1]
local old = redis.call('HMGET', key, 'epoch', 'state')
if old[1] ~= ARGV[2] or old[2] ~= 'down' then
  return {0}
end
redis.call('HINCRBY', key, 'sequence', 1)
publish(id, 'forgotten', '1')
redis.call('DEL', key)
redis.call('HDEL', P .. 'experience', id)
redis.call('SREM', P .. 'ids', id)
return {1}
