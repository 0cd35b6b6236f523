#!/usr/bin/env bash
# Makes proto/generated from proto/v1. With --check: says whether the committed stubs are fresh.
# The .proto files name each other by package path; the stubs are moved and their imports made relative.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/out"
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -Ipaceline/proto=proto \
  --python_out="$tmp/out" --grpc_python_out="$tmp/out" --mypy_out=quiet:"$tmp/out" --mypy_grpc_out=quiet:"$tmp/out" \
  proto/v1/*.proto
from="$tmp/out/paceline/proto/v1"
sed -i -E 's/^from paceline\.proto\.v1 import /from . import /' "$from"/*.py "$from"/*.pyi
printf '"""Made by scripts/protoc.sh from proto/v1; do not edit."""\n' > "$from/__init__.py"
if [ "${1:-}" = --check ]; then
  diff -r -x __pycache__ "$from" proto/generated || { echo "proto/generated is stale: run make proto"; exit 1; }
else
  rm -rf proto/generated && mkdir proto/generated && cp "$from"/* proto/generated/
fi
