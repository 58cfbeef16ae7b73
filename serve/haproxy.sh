#!/bin/sh
# Starts the HAProxy that Ray Serve brings, after taking two listeners out of the configuration that
# Ray wrote: statistics and metrics, both unauthenticated on every interface, with no setting in
# Ray 2.60 to close them. Ray itself reads statistics through HAProxy's Unix socket.
# It also gives the proxy's own errors (no replica up, replica lost) OpenAI's shape and a 503.
# Ray calls it as: haproxy -db -f CONFIG ...   (RAY_SERVE_HAPROXY_BINARY_PATH)
set -eu
config=
previous=
for argument in "$@"; do
  [ "$previous" = "-f" ] && config=$argument
  previous=$argument
done
[ -n "$config" ] || exec "$LLAVA_MED_HAPROXY" "$@"
awk '/^(frontend prometheus|listen stats)/ { skip = 1; next }
     /^[a-z]/ { skip = 0 }
     !skip' "$config" >"$config.$$"
mv "$config.$$" "$config"
body='{"error": {"message": "No replica of the service can answer now. Try again.", "type": "service_unavailable", "param": null, "code": "no_replica"}}'
printf 'HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: %s\r\n\r\n%s' \
  "${#body}" "$body" >"$(dirname "$config")/500.http"
exec "$LLAVA_MED_HAPROXY" "$@"
