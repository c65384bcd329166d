-- include _members
-- ARGV: fresh generation. Gives {generation, revision, fields of a node...}.
local all = {generation(ARGV[1]), redis.call('GET', P .. 'revision') or '0'}
for _, id in ipairs(redis.call('SMEMBERS', P .. 'ids')) do
  all[#all + 1] = redis.call('HGETALL', P .. 'node:' .. id)
end
return all
