-- include _members
-- ARGV: fresh generation, judge (1: leases may expire now), moves, reason, most leases to expire.
-- Gives {generation, revision, now ms, expired ids...}.
local now = now_ms()
local seen = {generation(ARGV[1]), redis.call('GET', P .. 'revision') or '0', text(now)}
if ARGV[2] == '1' then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, ARGV[5])) do
    local state = after(ARGV[3], redis.call('HGET', P .. 'node:' .. id, 'state'))
    redis.call('ZREM', P .. 'leases', id)
    redis.call('HDEL', P .. 'health', id)
    if state then
      enter(id, state, ARGV[4])
      seen[#seen + 1] = id
    end
  end
end
return seen
