#!/usr/bin/env bash
# One environment from one lock: infra/install.sh UV ENVIRONMENT LOCK PYTHON_VERSIONS
# Byte code is compiled once, here: a run starts some twenty processes that import torch, ray or airflow.
# The seconds it took are kept in ENVIRONMENT/installed; `make run` adds them up for its report.
set -euo pipefail
uv=$1 environment=$2 lock=$3 versions=$4
started=$(date +%s.%N)
echo "installing $environment from $lock"
export UV_PYTHON_DOWNLOADS=never
if [ ! -x "$environment/bin/python" ]; then
    "$uv" venv --quiet --python "$versions" "$environment" || {
        echo "error: no Python $versions on this machine: install python3.11 or python3.12, then run make again" >&2
        exit 2
    }
fi
"$uv" pip sync --quiet --compile-bytecode --require-hashes --python "$environment" "$lock" &
sync=$!
while kill -0 "$sync" 2>/dev/null; do
    timeout 10 tail --pid="$sync" -f /dev/null || echo "installing $environment: $SECONDS s"
done
wait "$sync"
seconds=$(awk -v started="$started" -v ended="$(date +%s.%N)" 'BEGIN { printf "%.1f", ended - started }')
echo "$seconds" >"$environment/installed"
echo "installed $environment in $seconds s"
