-- include _held
-- ARGV: epoch, incarnation, number of digests, digests..., image names... Gives {'0'} when fenced, else {'1'}.
if fenced then
  return {'0'}
end
local first_image = 4 + ARGV[3]
for i = 4, first_image - 1 do remove(ARGV[i]) end
for i = first_image, #ARGV do redis.call('SREM', KEYS[3], ARGV[i]) end
save()
return {'1'}
