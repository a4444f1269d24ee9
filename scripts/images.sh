#!/usr/bin/env bash
# Build the images of docker-compose.yml. BASE_IMAGE (default: the published python image) and DEVICE (cpu or cuda) count.
#
#   scripts/images.sh [docker|podman]
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${1:-$(command -v docker >/dev/null && echo docker || echo podman)}
command -v "$engine" >/dev/null || { echo "images: error: there is no $engine; install docker or podman" >&2; exit 2; }
device=${DEVICE:-cpu}
case $device in cpu | cuda) ;; *) echo "images: error: DEVICE is cpu or cuda, not $device" >&2; exit 2 ;; esac
arguments=(--build-arg "DEVICE=$device")
[ -z "${BASE_IMAGE:-}" ] || arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
format=()
[ "$engine" != podman ] || format=(--format docker) # podman's own form has no health checks

"$engine" build ${format[@]+"${format[@]}"} "${arguments[@]}" -f reward_server/Dockerfile -t mmr1-reward-server:0.1.0 .
"$engine" build ${format[@]+"${format[@]}"} "${arguments[@]}" -f learner/Dockerfile -t "mmr1-learner:0.1.0-$device" .
"$engine" build ${format[@]+"${format[@]}"} "${arguments[@]}" -f rollout_server/Dockerfile -t "mmr1-rollout-server:0.1.0-$device" .
