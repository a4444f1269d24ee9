#!/usr/bin/env bash
# The reward server by itself: a wheel of it in an environment that holds nothing else. See tests/alone/.
#
#   scripts/test_reward_alone.sh      PYTHON=python3.12 scripts/test_reward_alone.sh    another interpreter (3.11 or 3.12)
#
# .venv-reward/bare has the server alone; .venv-reward/full has its extras, and what asks it about all of its routes.
# An environment is made anew when what goes into it changes; when only the server's code does, it is installed anew.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/find_python.sh
unset PYTHONPATH PYTHONHOME # what they name would be importable, and nothing else shall be

lock=constraints/cpu.txt
# What schemathesis brings along is pinned here too, where the lock does not have it.
asking=(pytest pytest-timeout schemathesis==4.32.5 graphql-core==3.3.2 harfile==0.6.0 hypothesis-graphql==0.13.5
  jsonschema-rs==0.60.3 pyrate-limiter==4.5.1 werkzeug==3.1.9)

say() { printf 'test-reward: %s\n' "$*"; }
fail() { printf 'test-reward: error: %s\n' "$*" >&2; exit 2; }
install() { "$1/bin/python" -m pip install -qq --disable-pip-version-check -c "$lock" "${@:2}"; }
digest() { sha256sum "$@" | sha256sum | cut -c 1-16; }

# build_wheel ENVIRONMENT: sets `wheel`. It is built in a copy: a build leaves a folder beside the sources, and what is
# gone from these would come back from there.
build_wheel() {
  local venv=$1 copy
  wheel=$(echo ".venv-reward/wheel-$code"/*.whl)
  [ ! -f "$wheel" ] || return 0
  say "building the wheel"
  rm -rf .venv-reward/wheel-*
  copy=$(mktemp -d)
  tar -c --exclude=build --exclude='*.egg-info' --exclude=__pycache__ reward_server | tar -x -C "$copy"
  "$venv/bin/python" -m pip wheel -qq --disable-pip-version-check --no-deps -w ".venv-reward/wheel-$code" "$copy/reward_server"
  rm -rf "$copy"
  wheel=$(echo ".venv-reward/wheel-$code"/*.whl)
}

# make_environment NAME EXTRAS [REQUIREMENT...]
make_environment() {
  local venv=.venv-reward/$1 extras=$2 wanted held
  wanted="$("$python" --version) $(digest scripts/test_reward_alone.sh "$lock" reward_server/pyproject.toml)"
  held=$(cat "$venv/.stamp" 2>/dev/null || true)
  [ "$held" != "$wanted $code" ] || return 0
  if [ "${held% *}" = "$wanted" ]; then
    build_wheel "$venv"
    install "$venv" --no-deps --force-reinstall "$wheel"
  else
    say "making $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    build_wheel "$venv"
    install "$venv" "$wheel$extras" "${@:3}"
  fi
  printf '%s %s' "$wanted" "$code" >"$venv/.stamp"
}

python=$(find_python) || fail "Python 3.11 or 3.12 is needed${PYTHON:+; PYTHON=$PYTHON is neither}"
mapfile -t sources < <(find reward_server -type f -not -path '*/build/*' -not -path '*.egg-info/*' -not -name '*.pyc' | sort)
code=$(digest "${sources[@]}")
mkdir -p .venv-reward

make_environment bare ''
.venv-reward/bare/bin/python -P tests/alone/check_alone.py
make_environment full '[math,coco]' "${asking[@]}"
# None of the settings and fixtures of the other tests: they are made for the whole project.
.venv-reward/full/bin/python -P -m pytest -c /dev/null --rootdir tests/alone --confcutdir tests/alone -q -p no:cacheprovider \
  --timeout 300 tests/alone
say "done"
