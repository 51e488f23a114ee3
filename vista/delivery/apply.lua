-- One batch of the log into one bucket, whole or not at all. See redis_store.py, which names the library (NAME
-- is defined above this line) and says what the keys hold.
--
-- KEYS: the bucket, its dead letters; where the same transaction has put the bytes of every summary, which do not
-- come in here, since Lua hashes every byte of a string; then of every run of summaries of one epoch the epoch's
-- index and each summary's own key.
-- ARGV: expected offset, next offset, number of summaries; the log that the offsets are of, or nothing, and 1 if it
-- may take the place of another; then of every run and of every other record four values: what it is, and three
-- that depend on it. A run's are its epoch, and header and user's digest of each.
-- Returns the stored offset; if it was the expected one also the numbers of records written, older, in conflict
-- and retired. Numbers are exact below 2^53, which arrivals and microseconds are.

local HEADER_BYTES, ROW_BYTES = 64, 72

local function order(header)
  return struct.unpack('<I8', header, 25), string.byte(header, 6) % 2, struct.unpack('<I4', header, 61)
end

local function floor_of(batch, space)
  if not batch.floors[space] then
    batch.floors[space] = tonumber(redis.call('HGET', batch.key, 'floor:' .. space) or '0')
  end
  return batch.floors[space]
end

local function is_retired(batch, tag)
  local retired = tonumber(string.sub(tag, 18)) < floor_of(batch, string.sub(tag, 1, 16))
  if retired then batch.retired = batch.retired + 1 end
  return retired
end

local function is_newer(batch, kept, header)
  local kept_arrivals, kept_tombstone, kept_crc = order(kept)
  local arrivals, tombstone, crc = order(header)
  if arrivals ~= kept_arrivals then return arrivals > kept_arrivals end
  if crc ~= kept_crc then batch.conflicts = batch.conflicts + 1 end
  if tombstone ~= kept_tombstone then return tombstone > kept_tombstone end
  return crc > kept_crc
end

local function count_user(batch, tag, digest)
  local new = batch.new[tag] or {users = 0, low = 0, high = 0}
  local low, high = struct.unpack('<I4I4', digest)
  new.users, new.low, new.high = new.users + 1, new.low + low, new.high + high
  batch.new[tag] = new
end

local function next_key(batch)
  batch.next_key = batch.next_key + 1
  return batch.keys[batch.next_key]
end

local function is_wanted(batch, tag, key, header, digest)
  if is_retired(batch, tag) then return false end
  local kept = redis.call('GETRANGE', key, 0, HEADER_BYTES - 1)
  if kept == '' then
    count_user(batch, tag, digest)
  elseif not is_newer(batch, kept, header) then
    batch.older = batch.older + 1
    return false
  end
  return true
end

local changes = {}

function changes.summaries(batch, tag, rows)
  local index = next_key(batch)
  for at = 1, #rows, ROW_BYTES do
    local header = string.sub(rows, at, at + HEADER_BYTES - 1)
    local digest = string.sub(rows, at + HEADER_BYTES, at + ROW_BYTES - 1)
    local key = next_key(batch)
    batch.next_put = batch.next_put + 1
    local put = batch.keys[batch.next_put]
    if is_wanted(batch, tag, key, header, digest) then
      redis.call('RENAME', put, key)
      redis.call('ZADD', index, struct.unpack('<i8', header, 49), string.sub(header, 33, 40))
      batch.written = batch.written + 1
    else
      redis.call('UNLINK', put)
    end
  end
end

function changes.barrier(batch, tag)
  if not is_retired(batch, tag) then redis.call('HSET', batch.key, 'barrier:' .. tag, 1) end
end

function changes.release(batch, release)
  redis.call('HSET', batch.key, 'release', release)
end

function changes.retirement(batch, space, name, floor)
  if tonumber(floor) > floor_of(batch, space) then
    batch.floors[space] = tonumber(floor)
    redis.call('HSET', batch.key, 'floor:' .. space, floor, 'space:' .. space, name)
  end
end

function changes.unusable(batch, next_offset, reason, data)
  redis.call('XADD', batch.keys[2], '*', 'next_offset', next_offset, 'reason', reason, 'data', data)
end

local function apply(keys, argv)
  local stored, last_put = redis.call('HGET', keys[1], 'offset') or '0', 2 + tonumber(argv[3])
  local log, kept_log = argv[4], redis.call('HGET', keys[1], 'log') or ''
  if stored ~= argv[1] or (log ~= '' and kept_log ~= '' and log ~= kept_log and argv[5] ~= '1') then
    for at = 3, last_put do redis.call('UNLINK', keys[at]) end
    return {stored}
  end
  local batch = {
    key = keys[1], keys = keys, next_put = 2, next_key = last_put, floors = {}, new = {},
    written = 0, older = 0, conflicts = 0, retired = 0,
  }
  for at = 6, #argv, 4 do
    changes[argv[at]](batch, argv[at + 1], argv[at + 2], argv[at + 3])
  end
  for tag, new in pairs(batch.new) do
    for name, value in pairs(new) do -- as a whole number: Redis may write a large double as 4e+12
      redis.call('HINCRBY', keys[1], name .. ':' .. tag, string.format('%.0f', value))
    end
  end
  redis.call('HSET', keys[1], 'offset', argv[2])
  if log ~= '' and log ~= kept_log then redis.call('HSET', keys[1], 'log', log) end
  return {argv[2], batch.written, batch.older, batch.conflicts, batch.retired}
end

redis.register_function(NAME, apply)
-- For control records alone, which take next to nothing: a retirement must get into a store that is full.
redis.register_function{function_name = NAME .. '_control', callback = apply, flags = {'allow-oom'}}
