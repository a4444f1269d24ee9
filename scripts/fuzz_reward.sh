#!/usr/bin/env bash
# Search for inputs that break the reward server, guided by coverage. See tests/fuzz/.
#
#   scripts/fuzz_reward.sh [--seconds 240] [--targets parsers tasks peers frames mathematics] [--replay FILE]
#
# It gets an environment of its own, .venv-reward/fuzz, made anew when what goes into it changes; the sources are used
# where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/find_python.sh

lock=constraints/cpu.txt
atheris='atheris>=3,<4' # built for each Python by its authors; no newer one is there for 3.11 than 3.0
venv=.venv-reward/fuzz

fail() { printf 'fuzz: error: %s\n' "$*" >&2; exit 2; }

python=$(find_python) || fail "Python 3.11 or 3.12 is needed${PYTHON:+; PYTHON=$PYTHON is neither}"
wanted="$("$python" --version) $(sha256sum scripts/fuzz_reward.sh "$lock" reward_server/pyproject.toml | sha256sum | cut -c 1-16)"
if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "fuzz: making $venv"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c "$lock" pytest hypothesis httpx "$atheris" \
    -e './reward_server[math,coco]'
  printf '%s' "$wanted" >"$venv/.stamp"
fi
PYTHONPATH=. exec "$venv/bin/python" tests/fuzz/fuzz_reward.py "$@"
