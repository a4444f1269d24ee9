# Debian's Redis, with the user and the folder that the published image has.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 999 published && useradd --system --uid 999 --gid 999 --no-create-home published \
 && install -d -o 999 -g 999 /data
WORKDIR /data
ENTRYPOINT ["redis-server"]
