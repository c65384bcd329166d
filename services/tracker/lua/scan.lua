-- include _members
-- ARGV: fresh generation, ms before its end by which a lease counts as late, the same as fresh, grace ms for a broken
-- session, reason of suspects that a probe must clear, most falls that are listed.
-- Gives {generation, revision, now ms, known nodes, recent falls, READY nodes that would fall now, guarded (1) or just lifted
-- (2), then id, epoch, cause for each node that something should happen to}. Changes nothing but the marker and old falls.
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', P .. 'falls', '-inf', now - 10000)
local falls, known = redis.call('ZRANGE', P .. 'falls', 0, -1), redis.call('ZCARD', P .. 'leases')
for _, id in ipairs(falls) do
  if not redis.call('ZSCORE', P .. 'leases', id) then known = known + 1 end
end
local guarded = redis.call('EXISTS', P .. 'guard') == 1 and 1 or (redis.call('EXISTS', P .. 'guard-lifted') == 1 and 2 or 0)
local rows = {generation(ARGV[1]), redis.call('GET', P .. 'revision') or '0', text(now), known, #falls, 0, guarded}
local seen, places = {}, tonumber(ARGV[6])
local function list(id, epoch, cause)
  for _, word in ipairs({id, epoch or '0', cause}) do rows[#rows + 1] = word end
end
-- All that fall are counted, or the guard would not see how many they are; those listed first make place for the others.
local function fall(ids, cause)
  for _, id in ipairs(ids) do
    local node = redis.call('HMGET', P .. 'node:' .. id, 'epoch', 'state')
    local ready = node[2] == 'ready'
    if not seen[id] and (ready or cause == 'expired') then
      seen[id] = true
      if ready then rows[6] = rows[6] + 1 end
      if places > 0 then list(id, node[1], cause) end
      places = places - 1
    end
  end
end
for _, id in ipairs(redis.call('SMEMBERS', P .. 'suspects')) do
  local deadline = tonumber(redis.call('ZSCORE', P .. 'leases', id) or 0)
  local node = redis.call('HMGET', P .. 'node:' .. id, 'epoch', 'reason')
  if deadline > now + ARGV[3] and node[2] ~= ARGV[5] and not redis.call('ZSCORE', P .. 'broken', id) then
    list(id, node[1], 'fresh')
  end
end
fall(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now), 'expired')
fall(redis.call('ZRANGEBYSCORE', P .. 'broken', '-inf', now - ARGV[4]), 'broke')
fall(redis.call('ZRANGEBYSCORE', P .. 'leases', now, now + ARGV[2]), 'late')
return rows
