#!/usr/bin/env bash
# Make the pretrained model that tests marked `real` train: once, in the user's cache. Prints its folder.
source "$(dirname "$0")/environment.sh"
python scripts/real_model.py
