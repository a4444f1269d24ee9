#!/usr/bin/env bash
# Drive a running reward server with the client code of the peers that PyPI has. See tests/peers/.
#
#   scripts/test_peers.sh [openrlhf|trl|verifiers|verl|swift ...]     all of them by default
#
# Each peer gets an environment of its own in .venv-peers (about 1 GB each, some minutes once), made anew when this file
# changes. Where a peer wants CUDA, a whole cluster or its training kernels, it is installed without its dependencies,
# and with what the code driven here imports.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/find_python.sh

# The CPU build that the project itself uses. Without this pin, pip fetches gigabytes of CUDA.
torch=$(sed -n 's/^torch==.*/&+cpu/p' constraints/cpu.txt)
torch_index=https://download.pytorch.org/whl/cpu

say() { printf 'test-peers: %s\n' "$*"; }

# Prints what is installed with its dependencies; the lines that begin with "bare" without.
packages() {
  case $1 in
    openrlhf) printf '%s\n' "$torch" transformers aiohttp sympy pylatexenc 'bare openrlhf==0.11.2' ;;
    trl) printf '%s\n' "$torch" torchvision==0.28.0 pillow trl==1.16.0 ;;  # benchmarks/trl_step.py shows it images
    verifiers) printf '%s\n' verifiers==0.4.0 ;;
    verl) printf '%s\n' "$torch" orjson verl==0.9.1 ;;
    swift) printf '%s\n' "$torch" 'transformers<5.20' modelscope 'datasets>=4,<4.8.5' 'peft<0.21' accelerate addict \
      pandas json-repair dacite einops matplotlib nltk rouge openai aiohttp simplejson zstandard binpacking \
      importlib-metadata tiktoken sentencepiece 'bare attrdict' 'bare trl<1.0' 'bare ms-swift==4.6.0' ;;
    *) return 1 ;;
  esac
}

# The index's torchvision is built for CUDA; what the project's own environment does about that helps here too.
lend_torchvision() {
  local site
  site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp scripts/mmr1_torchvision_cpu.py "$site/"
  echo "import mmr1_torchvision_cpu" >"$site/mmr1_torchvision_cpu.pth"
}

make_environment() {
  local peer=$1 venv=.venv-peers/$1 python wanted index=() with=() bare=() line
  wanted=$(packages "$peer"; cat scripts/test_peers.sh reward_server/pyproject.toml | sha256sum)
  if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$wanted" ]; then
    python=$(find_python) || { say "Python 3.11 or 3.12 is needed"; return 1; }
    say "making $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv" || return 1
    while read -r line; do
      case $line in bare\ *) bare+=("${line#bare }") ;; *) with+=("$line") ;; esac
    done < <(packages "$peer")
    "$venv/bin/pip" install -qq --dry-run --no-deps "$torch" >/dev/null 2>&1 || index=(--extra-index-url "$torch_index")
    "$venv/bin/pip" install -qq --no-compile "${index[@]}" "${with[@]}" -e ./reward_server || return 1
    case " ${with[*]} " in *\ torchvision==*) lend_torchvision "$venv" ;; esac
    [ ${#bare[@]} -eq 0 ] || "$venv/bin/pip" install -qq --no-compile --no-deps "${bare[@]}" || return 1
    printf '%s' "$wanted" >"$venv/.stamp"
  fi
}

drive() {
  HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 ".venv-peers/$1/bin/python" "tests/peers/drive_$1.py"
}

peers=("$@")
[ $# -gt 0 ] || peers=(openrlhf trl verifiers verl swift)
mkdir -p .venv-peers
echo '*' >.venv-peers/.gitignore
passed=0 failed=()
for peer in "${peers[@]}"; do
  packages "$peer" >/dev/null || { say "no such peer: $peer"; exit 2; }
  say "$peer"
  if make_environment "$peer" && drive "$peer"; then
    passed=$((passed + 1))
  else
    say "$peer failed"
    failed+=("$peer")
  fi
done
say "$passed peers passed, ${#failed[@]} failed ${failed[*]}"
[ ${#failed[@]} -eq 0 ]
