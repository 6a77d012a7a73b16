#!/usr/bin/env bash
# Write requirements.lock: every package of a fresh environment at the version that was resolved today (Python 3.11).
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python3 -m venv "$fresh/venv"
"$fresh/venv/bin/pip" install --quiet "$(grep '^torch==' requirements.lock)"
"$fresh/venv/bin/pip" install --quiet --editable '.[dev]'
{
  echo "# Python 3.11. torch first and alone: \`pip install torch==...\`, then \`pip install -r requirements.lock\`."
  "$fresh/venv/bin/pip" freeze --exclude-editable | sed 's/+cpu$//'
} > requirements.lock
