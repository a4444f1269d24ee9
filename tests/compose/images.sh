#!/usr/bin/env bash
# Every image of docker-compose.yml on a machine without a Docker engine and without a registry: podman, and a base image
# that debootstrap makes of Debian's packages. As root; it installs what it needs with apt-get.
#
#   tests/compose/images.sh          builds what has changed; prints nothing but what it does
#
# Redis and Prometheus are Debian's here, because the published images cannot be had. Grafana's is not replaced.
set -euo pipefail
cd "$(dirname "$0")/../.."
base=localhost/mmr1-test-base:bookworm

say() { printf 'images: %s\n' "$*"; }

packages=(podman buildah debootstrap runc netavark aardvark-dns iptables uidmap)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
  say "installing ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
# crun, the default, refuses machines whose cgroups are of both kinds; and the limits must be ones that this machine grants.
limits=/etc/containers/containers.conf
mkdir -p /etc/containers
[ -s "$limits" ] || cat >"$limits" <<'CONF'
[engine]
runtime = "runc"
[containers]
default_ulimits = ["nofile=10000:10000", "nproc=10000:10000"]
CONF

make_base() {
  local root mirror bundle=/etc/ssl/certs/ca-certificates.crt changes=()
  root=$(mktemp -d)
  trap 'rm -rf "$root"' RETURN
  # A machine has one of the two forms, or both: a file that is missing is no failure.
  mirror=$(find /etc/apt -name '*.sources' -o -name '*.list' | xargs -r sed -nE 's/^URIs: *//p; s/^deb +(\[[^]]*\] +)?([^ ]+).*/\2/p' | grep -m 1 debian || true)
  [ -n "$mirror" ] || { echo "images: error: no mirror of Debian's in /etc/apt; add one to /etc/apt/sources.list" >&2; exit 2; }
  say "making $base"
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$root" "$mirror" >"$root.out" 2>&1 ||
    { tail -5 "$root.out" >&2; return 1; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root.out"
  # It trusts whom this machine trusts.
  [ ! -s "$bundle" ] || cp "$bundle" "$root$bundle"
  changes+=(--change "ENV SSL_CERT_FILE=$bundle PIP_CERT=$bundle REQUESTS_CA_BUNDLE=$bundle")
  tar -C "$root" -c . | podman import -q "${changes[@]}" - "$base" >/dev/null
}
podman image exists "$base" || make_base

# Wheels that this machine has in a folder are found there while an image is built, whether the environment names it or
# pip's own settings do. Not by the base's environment: that one stays, and may have been made without.
wheels=() links=${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}
if [ -d "$links" ]; then
  settings=$(mktemp)
  trap 'rm -f "$settings"' EXIT
  printf '[global]\nfind-links = %s\n' "$links" >"$settings"
  wheels=(--volume "$links:$links:ro" --volume "$settings:/etc/pip.conf:ro")
fi
build() { # NAME DOCKERFILE CONTEXT
  say "building $1"
  podman build -q --format docker --layers --network host "${wheels[@]}" --build-arg "BASE_IMAGE=$base" -t "localhost/$1" -f "$2" "$3" >/dev/null
}
build mmr1-test-redis:7.0 tests/compose/redis.Dockerfile tests/compose
build mmr1-test-prometheus:2.42 tests/compose/prometheus.Dockerfile tests/compose
build mmr1-reward-server:0.1.0 reward_server/Dockerfile .
build mmr1-learner:0.1.0-cpu learner/Dockerfile .
build mmr1-rollout-server:0.1.0-cpu rollout_server/Dockerfile .
