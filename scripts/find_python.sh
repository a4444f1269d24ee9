# Sourced by the other scripts: which interpreter environments are made with.

# usable_python COMMAND: is it Python 3.11 or 3.12?
usable_python() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

# Prints PYTHON= where it is set, or else the first that fits. Fails when none does.
find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    usable_python "$PYTHON" && echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3; do
    if usable_python "$candidate"; then echo "$candidate"; return; fi
  done
  return 1
}
