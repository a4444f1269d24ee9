#!/usr/bin/env bash
# Generate services/mmr1/wire/v1 from proto/. `generate_stubs.sh --check` changes nothing and exits 1 when they differ.
#
# protoc derives import names from file names; ours live under mmr1.wire.v1, so one import line is rewritten.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
"$python" -m grpc_tools.protoc -Iproto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" proto/mmr1/v1/*.proto
rm "$out"/mmr1/v1/records_pb2_grpc.py
sed -i 's/from mmr1\.v1 import/from mmr1.wire.v1 import/' "$out"/mmr1/v1/*.py "$out"/mmr1/v1/*.pyi
printf '"""Generated from proto/mmr1/v1 by `make proto`. Do not edit."""\n' > "$out/mmr1/v1/__init__.py"
if [ "${1:-}" = --check ]; then
  diff -r -x __pycache__ "$out/mmr1/v1" services/mmr1/wire/v1 && echo "stubs match proto/"
else
  mkdir -p services/mmr1/wire/v1 && cp "$out"/mmr1/v1/* services/mmr1/wire/v1/ && echo "wrote services/mmr1/wire/v1"
fi
