#!/usr/bin/env bash
# Runs a flow once and prints the result and the steps:  examples/run.sh FILE [PAYLOAD]
#
# Creates or updates the flow with the name of the file, starts it, and runs it with the payload (JSON or text). Requires
# bash, curl, python3, and a server at API. With OUTSIDE=http://127.0.0.1:9000, addresses under example.com in the file
# and in the payload are replaced by those of examples/outside.py.
set -euo pipefail

API=${API:-http://localhost:8000/api/v1}
FILE=${1:?usage: examples/run.sh FILE [PAYLOAD]}
PAYLOAD=${2:-}
NAME=$(basename "$FILE" .yaml)

outside() { if [ -n "${OUTSIDE:-}" ]; then sed -E "s#https://([a-z]+)\.example\.com#$OUTSIDE/\1#g"; else cat; fi; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin).get(sys.argv[1]) or "")' "$1"; }
# A JSON object with the member $1, whose value is the standard input. If the input is empty, the object is empty.
object() {
  python3 -c 'import json, sys; text = sys.stdin.read(); print(json.dumps({sys.argv[1]: text} if text else {}))' "$1"
}
send() { curl --silent --show-error --fail-with-body -H 'Content-Type: application/json' "$@"; }
wait_while() { # wait until the flow no longer has the status $1
  while [ "$(send "$API/flows/$FLOW" | field status)" = "$1" ]; do sleep 0.2; done
}

FLOW=$(send "$API/flows?page_size=1000" | NAME=$NAME python3 -c '
import json, os, sys
found = [flow["id"] for flow in json.load(sys.stdin)["items"] if flow["name"] == os.environ["NAME"]]
print(found[0] if found else "")')
if [ -z "$FLOW" ]; then
  FLOW=$(printf %s "$NAME" | object name | send -X POST "$API/flows" -d @- | field id)
fi
outside <"$FILE" | object organismYaml | send -X PATCH "$API/flows/$FLOW" -d @- >/dev/null

# A running flow keeps the definition that it was started with. To activate a newer one, stop and start the flow.
read -r STATUS ACTIVE LATEST < <(send "$API/flows/$FLOW" | python3 -c '
import json, sys
flow = json.load(sys.stdin)
print(flow["status"], flow["activeVersion"], flow["latestVersion"])')
if [ "$STATUS" = running ] && [ "$ACTIVE" != "$LATEST" ]; then
  send -X POST "$API/flows/$FLOW/stop" >/dev/null
  wait_while stopping
  STATUS=stopped
fi
if [ "$STATUS" != running ]; then
  send -X POST "$API/flows/$FLOW/start" >/dev/null
  wait_while starting
fi
PROBLEM=$(send "$API/flows/$FLOW" | field errorMessage)
if [ -n "$PROBLEM" ]; then
  echo "$FILE does not start: $PROBLEM" >&2
  exit 1
fi

RUN=$(printf %s "$PAYLOAD" | outside | object inputPayload |
  send -X POST "$API/flows/$FLOW/executions/run?wait=30" -d @-)
EXECUTION=$API/flows/$FLOW/executions/$(printf %s "$RUN" | field id)
printf %s "$RUN" | python3 -c '
import json, sys
run = json.load(sys.stdin)
print(run["status"] if run["durationMs"] is None else "{status} after {durationMs} ms".format_map(run))
print("error:", run["errorMessage"]) if run["errorMessage"] else print("output:", str(run["outputPayload"])[:300])'
send "$EXECUTION/steps" | python3 -c '
import json, sys
for step in json.load(sys.stdin)["items"]:
    message = step["errorMessage"] or ""
    line = "  {listener:<12} {handler:<14} {status:<8} attempt {attempt}  {durationMs} ms  ".format_map(step)
    print((line + message).rstrip())'
echo "execution: $EXECUTION"
echo "flow: $API/flows/$FLOW"
