#!/usr/bin/env bash
# Set everything up, then run every check: lint, format, types, tests.
source "$(dirname "$0")/environment.sh"
ruff check .
ruff format --check .
mypy
pytest "$@"
