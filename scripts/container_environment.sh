#!/usr/bin/env bash
# Make the environment of the learner's and the rollout server's images: everything they run on, nothing of ours.
#
#   scripts/container_environment.sh cpu|cuda FOLDER
#
# Called while an image is built, where constraints/ and scripts/ are. `scripts/setup.sh` makes the one for development.
set -euo pipefail
cd "$(dirname "$0")/.."
device=$1 venv=$2
locked=constraints/$device.txt
torch_index=https://download.pytorch.org/whl/cpu

python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@" --disable-pip-version-check --no-cache-dir -q; }

torch=("$(grep '^torch==' "$locked")")
if [ "$device" = cpu ]; then
  torch=("${torch[0]}+cpu")
  pip install --dry-run --no-deps "${torch[@]}" >/dev/null 2>&1 || torch+=(--extra-index-url "$torch_index")
fi
runtime=$(mktemp)
# The lock is whole, so pip resolves nothing of it. Triton, a gigabyte, has no CPU backend: vLLM puts it aside there.
apart='deepspeed|torch'
[ "$device" != cpu ] || apart+='|triton'
grep -vE "^(($apart)==|#|\$)" "$locked" | grep -vixE "$(grep -v '^#' constraints/development.txt | paste -sd '|' | sed 's/.*/(&)==.*/')" >"$runtime"

pip install --no-compile -c "$locked" "${torch[@]}" ninja setuptools wheel packaging psutil py-cpuinfo numpy
pip install --no-compile --no-deps -r "$runtime"
if [ "$device" = cpu ]; then
  # Compiled into the package: an image that is read-only could compile nothing later.
  DS_ACCELERATOR=cpu DS_BUILD_OPS=0 DS_BUILD_SHM_COMM=1 PATH="$venv/bin:$PATH" \
    pip install --no-compile --no-deps --no-build-isolation "$(grep '^deepspeed==' "$locked")"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  install -m 0644 scripts/mmr1_torchvision_cpu.py "$site/" # whatever the checkout's umask was
  echo "import mmr1_torchvision_cpu" >"$site/mmr1_torchvision_cpu.pth"
else
  DS_ACCELERATOR=cuda DS_BUILD_OPS=0 pip install --no-compile --no-deps --no-build-isolation "$(grep '^deepspeed==' "$locked")"
fi
rm "$runtime"
# Compiled once, here: nobody may write there later, and every process would compile half a minute for itself.
"$venv/bin/python" -m compileall -q -j 2 "$venv/lib" >/dev/null 2>&1 || true # templates in some packages are no Python
