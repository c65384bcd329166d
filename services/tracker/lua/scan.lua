-- include _members
-- ARGV: fresh generation, ms before its end by which a lease counts as late, the same as fresh, grace ms for a broken
-- session, reason of suspects that a probe must clear, most rows.
-- Gives {generation, revision, now ms, known nodes, recent falls, guarded (1) or just lifted (2), then id, epoch, cause
-- for each node that something should happen to}. Changes nothing but the marker and old falls.
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', P .. 'falls', '-inf', now - 10000)
local falls, known = redis.call('ZRANGE', P .. 'falls', 0, -1), redis.call('ZCARD', P .. 'leases')
for _, id in ipairs(falls) do
  if not redis.call('ZSCORE', P .. 'leases', id) then known = known + 1 end
end
local guarded = redis.call('EXISTS', P .. 'guard') == 1 and 1 or (redis.call('EXISTS', P .. 'guard-lifted') == 1 and 2 or 0)
local rows = {generation(ARGV[1]), redis.call('GET', P .. 'revision') or '0', text(now), known, #falls, guarded}
local seen = {}
local function add(id, cause)
  if not seen[id] then
    seen[id] = true
    for _, word in ipairs({id, redis.call('HGET', P .. 'node:' .. id, 'epoch') or '0', cause}) do rows[#rows + 1] = word end
  end
end
local function ready(id)
  return redis.call('HGET', P .. 'node:' .. id, 'state') == 'ready'
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, ARGV[6])) do
  add(id, 'expired')
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'broken', '-inf', now - ARGV[4], 'LIMIT', 0, ARGV[6])) do
  if ready(id) then add(id, 'broke') end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', now, now + ARGV[2], 'LIMIT', 0, ARGV[6])) do
  if ready(id) then add(id, 'late') end
end
for _, id in ipairs(redis.call('SMEMBERS', P .. 'suspects')) do
  local deadline = tonumber(redis.call('ZSCORE', P .. 'leases', id) or 0)
  local probed = redis.call('HGET', P .. 'node:' .. id, 'reason') == ARGV[5]
  if deadline > now + ARGV[3] and not probed and not redis.call('ZSCORE', P .. 'broken', id) then add(id, 'fresh') end
end
return rows
