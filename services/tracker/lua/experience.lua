-- include _members
-- ARGV, for each node: id, epoch, streams that went well, that failed, for which it had no room, mean seconds to the first byte and
-- per MiB of the good and the slow ones (0: not known). Moves the averages of what gateways met; each stream counts a tenth. Gives {}.
local now = now_ms()
local function mixed(old, sample, count)
  if sample == 0 then return old end
  if old == 0 then return sample end
  local weight = 0.9 ^ math.max(1, count)
  return old * weight + sample * (1 - weight)
end
for i = 1, #ARGV, 7 do
  local id, good, bad, full, pace = ARGV[i], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), tonumber(ARGV[i + 6])
  if redis.call('HGET', P .. 'node:' .. id, 'epoch') == ARGV[i + 1] and (good + bad + full > 0 or pace > 0) then
    local known = redis.call('HGET', P .. 'experience', id)
    local old = known and cjson.decode(known) or {success = 1, room = 1, first = 0, pace = 0, at = now}
    -- Old failures are forgiven with time (health_score.py): start from what they are still worth.
    local worth = math.exp(math.min(0, old.at - now) / 60000)
    local function share(before, yes, no)
      local weight = 0.9 ^ (yes + no)
      return (1 - (1 - before) * worth) * weight + yes / math.max(1, yes + no) * (1 - weight)
    end
    redis.call('HSET', P .. 'experience', id, cjson.encode({
      success = share(old.success, good, bad),
      room = share(old.room or 1, good + bad, full),
      first = mixed(old.first, tonumber(ARGV[i + 5]), good),
      pace = mixed(old.pace, pace, good),
      at = now,
    }))
  end
end
return {}
