#!/usr/bin/env bash
# Makes deploy/kubernetes/secrets: random tokens and passwords, and the rules of Redis' users (those of docs/security.md).
# The folder is not committed. Nothing is replaced: remove the folder first for new ones.
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
page=$here/../../docs/security.md
out=$here/secrets

fail() { printf 'make-secrets: error: %s\n' "$*" >&2; exit 2; }
command -v openssl >/dev/null || fail "openssl is missing; install it"
[ -f "$page" ] || fail "there is no $page; run this in the repository"
[ ! -e "$out" ] || fail "$out is there already; remove it first if you want new secrets"

cp -r "$here/secrets.example" "$out.new"
trap 'rm -rf "$out.new"' EXIT
random() { printf %s "$(openssl rand -hex 32)"; }

random >"$out.new/reward/reward.key"
random >"$out.new/run/rollout.token"
{
  echo "user default off"
  echo "user probe on nopass resetkeys resetchannels -@all +ping"
  for name in learner rollout ledger scaler; do
    random >"$out.new/run/$name.password"
    hash=$(openssl dgst -sha256 -r <"$out.new/run/$name.password" | cut -d ' ' -f 1)
    if [ "$name" = scaler ]; then
      rule="user mmr1-scaler on #SHA256 resetkeys resetchannels -@all ~mmr1:* +ping +xinfo|groups"
    else
      rule=$(sed -n "s/^ *\(user mmr1-$name on #SHA256 .*\)/\1/p" "$page")
    fi
    [ -n "$rule" ] || fail "$page has no rule for mmr1-$name"
    printf '%s\n' "${rule/SHA256/$hash}"
  done
} >"$out.new/run/users.acl"
mv "$out.new" "$out"
trap - EXIT
echo "wrote $out"
