# Sourced by the other scripts: a .venv with what requirements.lock names and this package, made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
if ! cmp --silent requirements.lock .venv/installed.lock; then
  echo "installing the packages of requirements.lock into .venv"
  # torch alone and first: with it in place nothing else asks for a build of several gigabytes.
  .venv/bin/pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.lock)"
  .venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.lock
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  cp requirements.lock .venv/installed.lock
fi
export PATH="$PWD/.venv/bin:$PATH"
