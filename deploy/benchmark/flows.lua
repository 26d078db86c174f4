-- Starts flows and finishes them, whichever connection is free; what `done` prints is one line of JSON.
local threads, open = {}, {}
committed, refused = 0, 0

setup = function(thread) table.insert(threads, thread) end

request = function()
   local flow = table.remove(open)
   if flow then return wrk.format("POST", "/finish", {["X-API-Key"] = wrk.headers["X-API-Key"], ["Pandora-Flow"] = flow}) end
   return wrk.format("POST", "/start")
end

response = function(status, headers)
   local state = headers["Pandora-Flow-State"]
   if status ~= 200 then refused = refused + 1
   elseif state == "open" then table.insert(open, headers["Pandora-Flow"])
   elseif state == "committed" then committed = committed + 1 end
end

done = function(summary, latency)
   local pairs_done, bad = 0, 0
   for _, thread in ipairs(threads) do
      pairs_done, bad = pairs_done + thread:get("committed"), bad + thread:get("refused")
   end
   local errors = summary.errors
   io.write(string.format(
      '\n{"pairs": %d, "us": %d, "p50": %d, "p99": %d, "refused": %d, "broken": %d}\n',
      pairs_done, summary.duration, latency:percentile(50), latency:percentile(99), bad,
      errors.connect + errors.read + errors.write + errors.timeout))
end
