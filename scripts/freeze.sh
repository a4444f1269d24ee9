#!/usr/bin/env bash
# Write constraints/cpu.txt from what .venv holds: how a new or newer package gets in, after `pip install` and a test run.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  echo "# Every package of the CPU environment, exactly: Linux x86-64, Python 3.11 and 3.12. Written by scripts/freeze.sh."
  echo "# torch stands here without its +cpu suffix, so that the file serves \`pip install -c\` too; scripts/setup.sh adds it."
  .venv/bin/python -m pip freeze --all --exclude-editable --exclude pip --disable-pip-version-check |
    grep -vE '^mmr1|^-e| @ ' | sed -E 's/^(torch==[0-9.]+)\+cpu$/\1/'
} >constraints/cpu.txt.new
mv constraints/cpu.txt.new constraints/cpu.txt
echo "wrote constraints/cpu.txt: $(grep -c == constraints/cpu.txt) packages"
