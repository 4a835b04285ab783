#!/bin/sh
# Generates TypeScript types from the OpenAPI document and compiles a client that uses them.
# Needs node, npm with access to a registry, and a Python with bloxserver installed (PYTHON; default: .venv/bin/python).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp tests/openapi_client/* "$work"
"$python" -c 'import json; from bloxserver.api.main import app; print(json.dumps(app.openapi()))' >"$work/openapi.json"
cd "$work"
npm ci --no-audit --no-fund --loglevel=error
npx --no-install openapi-typescript openapi.json --output schema.d.ts
npx --no-install tsc --project .
echo "the generated client compiles: $(grep -c 'parameters:' schema.d.ts) parameter lists, $(wc -l <schema.d.ts) lines"
