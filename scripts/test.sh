#!/usr/bin/env bash
# Set everything up, then run every check: lint, format, types, tests.
source "$(dirname "$0")/environment.sh"
case " $* " in *" -m vllm "*) bash scripts/vllm.sh ;; esac
bash scripts/torchao.sh # for the tests of model.fp8, which lay it into their own process
bash scripts/real_model.sh & # for the tests marked `real`; made once
ruff check .
ruff format --check .
mypy
wait $!
unset PYTHONDONTWRITEBYTECODE  # many of the tests start processes, which would all compile the package
# Two at a time, a file of tests each; one thread each, or they would wait for each other. More: -n 8.
# At the end the slowest are named, beyond ten seconds.
OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=10 "$@"
