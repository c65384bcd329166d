-- Put before the scripts of the membership slot. All keys share the literal hash tag {members}; node keys are made here.
local P = 'stafett:{members}:'

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

-- The marker of this data set: made by whoever first finds none, so a flush shows as a change.
local function generation(fresh)
  if redis.call('SET', P .. 'generation', fresh, 'NX') then
    return fresh
  end
  return redis.call('GET', P .. 'generation')
end

local function publish(id, ...)
  local node = redis.call('HGETALL', P .. 'node:' .. id)
  for _, word in ipairs({...}) do
    node[#node + 1] = word
  end
  local revision = text(redis.call('INCR', P .. 'revision'))
  redis.call('XADD', P .. 'events', 'MAXLEN', '~', 10000, revision .. '-0', unpack(node))
end

-- moves: 'from=to,from=to' as given by liveness.py; nil when the state stays out of it.
local function after(moves, state)
  for from, to in string.gmatch(moves, '(%w+)=(%w+)') do
    if from == state then
      return to
    end
  end
end

-- A node's state changes. Falls from READY are counted for it (flaps), and remembered for the mass guard.
local function enter(id, state, reason)
  local key, now = P .. 'node:' .. id, now_ms()
  local fell = redis.call('HGET', key, 'state') == 'ready' and (state == 'suspect' or state == 'down')
  if fell then
    redis.call('HINCRBY', key, 'flaps', 1)
    redis.call('ZADD', P .. 'falls', now, id)
  end
  redis.call(state == 'suspect' and 'SADD' or 'SREM', P .. 'suspects', id)
  redis.call('HINCRBY', key, 'sequence', 1)
  redis.call('HSET', key, 'state', state, 'reason', reason, 'since', text(now))
  publish(id)
end
