#!/usr/bin/env bash
# Make .torchao, once: torchao in a folder beside .venv, since transformers imports it in every process where it is there.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.18.0
if [ "$(cat .torchao/installed 2>/dev/null)" != "$VERSION" ]; then
  rm -rf .torchao
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target .torchao "torchao==$VERSION"
  echo "$VERSION" > .torchao/installed
fi
