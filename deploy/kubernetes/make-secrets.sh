#!/usr/bin/env bash
# Makes deploy/kubernetes/secrets: random tokens and passwords, the rules of Redis' users (those of docs/security.md), and
# certificates for the component `rollout-tls`. The folder is not committed. Nothing is replaced: remove the folder first for
# new ones.
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
  # Nobody can be it. Redis 7 reads its file back as this user, and leaves out what the user might not write.
  echo "user default off resetpass ~* &* +@all"
  echo "user probe on nopass resetkeys resetchannels -@all +ping"
  for name in learner rollout ledger scaler; do
    random >"$out.new/run/$name.password"
    hash=$(openssl dgst -sha256 -r <"$out.new/run/$name.password" | cut -d ' ' -f 1)
    if [ "$name" = scaler ]; then # KEDA asks for the length alone
      rule="user mmr1-scaler on #SHA256 resetkeys resetchannels -@all ~mmr1:* +ping +xlen"
    else
      rule=$(sed -n "s/^ *\(user mmr1-$name on #SHA256 .*\)/\1/p" "$page")
    fi
    [ -n "$rule" ] || fail "$page has no rule for mmr1-$name"
    printf '%s\n' "${rule/SHA256/$hash}"
  done
} >"$out.new/run/users.acl"

# One certificate for all rollout servers, whatever their addresses, and one for the learner. The CA signs no others: its
# key is not kept.
tls=$out.new/tls days=3650
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
quietly() { local said; said=$("$@" 2>&1) || fail "$said"; }
quietly openssl req -x509 "${new_key[@]}" -keyout "$tls/ca.key" -out "$tls/ca.crt" -subj "/CN=mmr1 CA" -days "$days"
sign() { # FILES NAME
  quietly openssl req "${new_key[@]}" -keyout "$tls/$1.key" -out "$tls/request" -subj "/CN=$2"
  printf 'subjectAltName=DNS:%s' "$2" >"$tls/names"
  quietly openssl x509 -req -in "$tls/request" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial \
    -CAserial "$tls/serial" -days "$days" -extfile "$tls/names" -out "$tls/$1.crt"
}
sign server rollout-server
sign client learner
rm "$tls"/{ca.key,request,names,serial}
mv "$out.new" "$out"
trap - EXIT
echo "wrote $out"
