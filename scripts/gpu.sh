#!/usr/bin/env bash
# On a machine with one GPU or more: all that only a GPU can tell, into one JSON and one table. See gpu.py.
#   bash scripts/gpu.sh --data PAIRS.jsonl.gz
source "$(dirname "$0")/environment.sh"
bash scripts/real_model.sh
bash scripts/torchao.sh
exec python scripts/gpu.py "$@"
