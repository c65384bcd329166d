-- include _members
-- ARGV: ids. Gives for each {ms left of its lease, its health sample, what gateways met, ms since then}; "" for unknown.
local now, all = now_ms(), {}
for _, id in ipairs(ARGV) do
  local deadline = redis.call('ZSCORE', P .. 'leases', id)
  local met = redis.call('HGET', P .. 'experience', id)
  all[#all + 1] = {
    deadline and text(tonumber(deadline) - now) or '',
    redis.call('HGET', P .. 'health', id) or '',
    met or '',
    met and text(math.max(0, now - cjson.decode(met).at)) or '0',
  }
end
return all
