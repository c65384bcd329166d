-- Slot of one digest. KEYS: index of buckets. ARGV: region, zone, rack of the asker, most entries, entries kept for each
-- farther tier, random seed. Gives {1 if there is more, node, value, node, value...}, nearest tier first, random inside a tier,
-- evenly over its buckets.
local tiers = {{}, {}, {}, {}}
for _, bucket in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local region, zone, rack = bucket:match('^([^/]*)/([^/]*)/([^/]*)$')
  local tier = 4
  if region == ARGV[1] then
    tier = zone ~= ARGV[2] and 3 or (rack == ARGV[3] and 1 or 2)
  end
  table.insert(tiers[tier], bucket)
end
math.randomseed(ARGV[6])
local most, reserve, found, more = tonumber(ARGV[4]), tonumber(ARGV[5]), {0}, 0
for _, buckets in ipairs(tiers) do
  local wanted = math.max(most - (#found - 1) / 2, reserve)
  for left = #buckets, 1, -1 do
    if wanted == 0 then
      more = 1
      break
    end
    local bucket = table.remove(buckets, math.random(left))
    local key = KEYS[1] .. ':' .. bucket
    local share = math.ceil(wanted / left)
    local entries = redis.call('HRANDFIELD', key, share, 'WITHVALUES')
    if #entries == 0 then redis.call('SREM', KEYS[1], bucket) end
    if #entries == 2 * share and redis.call('HLEN', key) > share then more = 1 end
    for _, word in ipairs(entries) do found[#found + 1] = word end
    wanted = wanted - #entries / 2
  end
end
found[1] = more
return found
