#!/usr/bin/env bash
# Set everything up, then run a whole alignment on the toy task: about five minutes on two CPU cores.
source "$(dirname "$0")/environment.sh"
alignment run tiny_pipeline "$@"
