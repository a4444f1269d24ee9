#!/usr/bin/env bash
# Write sbom/IMAGE.cdx.json (CycloneDX: the Python packages in it) and sbom/IMAGE.debian.txt (Debian's) of each image.
#
#   scripts/sbom.sh [podman|docker] [IMAGE ...]
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${1:-$(command -v docker >/dev/null && echo docker || echo podman)}
shift || true
images=("$@")
[ ${#images[@]} -gt 0 ] || images=(mmr1-reward-server:0.1.0 "mmr1-rollout-server:0.1.0-${DEVICE:-cpu}" "mmr1-learner:0.1.0-${DEVICE:-cpu}")
tool=.venv-sbom

for image in "${images[@]}"; do
  "$engine" image inspect "$image" >/dev/null 2>&1 || { echo "sbom: error: there is no image $image; make images builds it" >&2; exit 2; }
done
[ -x "$tool/bin/cyclonedx-py" ] || { python3 -m venv "$tool"; "$tool/bin/pip" install -q --disable-pip-version-check cyclonedx-bom==7.5.0; }
mkdir -p sbom
# What is installed, as the image's own interpreter sees it.
listing='from importlib.metadata import distributions
print("\n".join(sorted({f"{one.name}=={one.version}" for one in distributions()})))'
for image in "${images[@]}"; do
  name=${image##*/} name=${name//:/-}
  "$engine" run --rm --network none --read-only --entrypoint python "$image" -c "$listing" >"sbom/$name.txt"
  "$tool/bin/cyclonedx-py" requirements "sbom/$name.txt" --output-format JSON --output-file "sbom/$name.cdx.json"
  "$engine" run --rm --network none --read-only --entrypoint dpkg-query "$image" -W >"sbom/$name.debian.txt"
  echo "sbom/$name.cdx.json: $(grep -c == "sbom/$name.txt") Python packages; sbom/$name.debian.txt: $(wc -l <"sbom/$name.debian.txt") of Debian"
  rm "sbom/$name.txt"
done
