-- wrk -s post.lua URL -- FILE OFFSET COUNT SECONDS
--
-- Posts COUNT lines of FILE at most, each once, for SECONDS at most; then waits for the answers
-- that are still out, so that what was answered and what was stored can be compared exactly. (wrk
-- itself would hang up on them.) Give wrk a second more than SECONDS.

local ffi = require("ffi")
ffi.cdef("typedef struct { long s, ns; } moment; int clock_gettime(int, moment *);")

local HEADERS = { ["Content-Type"] = "application/jwt" }
local IDLE_MS = 3600 * 1000

local moment = ffi.new("moment")
local file, left, seconds, began, probed
local threads = {}

elapsed_s = 0 -- global: `done` runs in another state and can see nothing else of ours

local function now_s()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.s) + tonumber(moment.ns) / 1e9
end

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  file = io.open(args[1], "rb")
  file:seek("set", tonumber(args[2]))
  left, seconds = tonumber(args[3]), tonumber(args[4])
end

-- Asked whenever a connection is free: after it was made, after each answer.
function delay()
  local now = now_s()
  began = began or now
  elapsed_s = now - began
  if left == 0 or elapsed_s > seconds then
    return IDLE_MS
  end
  left = left - 1
  return 0
end

function request()
  if not probed then -- wrk asks once for nothing, to see what it gets
    probed = true
    return wrk.format("POST")
  end
  return wrk.format("POST", nil, HEADERS, file:read("*l"))
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"answered": %d, "refused": %d, "broken": %d, "elapsed_s": %f, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests - errors.status, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    threads[1]:get("elapsed_s"), latency:percentile(50) / 1000, latency:percentile(99) / 1000
  ))
end
