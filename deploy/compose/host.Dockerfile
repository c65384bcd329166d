# The machine of docker-compose.yml: an unchanged containerd, whose mirror files come from `stafett configure`.
ARG BASE=debian:12.12-slim
FROM ${BASE}
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates containerd && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
COPY containerd.toml /etc/containerd/config.toml
ENTRYPOINT ["containerd"]
