-- include _members
-- ARGV, for each node: id, epoch, streams that went well, streams that failed, mean seconds to the first byte and per MiB of
-- the good and the slow ones (0: not known). Moves the averages of what gateways met; each stream counts a tenth. Gives {}.
local now = now_ms()
local function mixed(old, sample, count)
  if sample == 0 then return old end
  if old == 0 then return sample end
  local weight = 0.9 ^ math.max(1, count)
  return old * weight + sample * (1 - weight)
end
for i = 1, #ARGV, 6 do
  local id, good, bad = ARGV[i], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local met = good + bad > 0 or tonumber(ARGV[i + 5]) > 0
  if redis.call('HGET', P .. 'node:' .. id, 'epoch') == ARGV[i + 1] and met then
    local known = redis.call('HGET', P .. 'experience', id)
    local old = known and cjson.decode(known) or {success = 1, first = 0, pace = 0, at = now}
    -- Old failures are forgiven with time (health_score.py): start from what they are still worth.
    local success = 1 - (1 - old.success) * math.exp(math.min(0, old.at - now) / 60000)
    local weight = 0.9 ^ (good + bad)
    redis.call('HSET', P .. 'experience', id, cjson.encode({
      success = success * weight + good / math.max(1, good + bad) * (1 - weight),
      first = mixed(old.first, tonumber(ARGV[i + 4]), good),
      pace = mixed(old.pace, tonumber(ARGV[i + 5]), good),
      at = now,
    }))
  end
end
return {}
