-- ARGV: incarnation, ids. A durable checkpoint contains these groups: acknowledged, removed and counted as trained.
local refused = stale(ARGV[1]); if refused then return refused end
local count = 0
for i = 2, #ARGV do
  if settle(ARGV[i], 'trained', 'trained') then count = count + 1 end
end
return count
