# Debian's packages under the names of the images that docker-compose.yml uses, as no registry is reached here.
ARG BASE
FROM ${BASE} AS redis
RUN apt-get update -q && \
    apt-get install -y -q --no-install-recommends redis-server docker-registry prometheus wget && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
FROM redis AS registry
ENTRYPOINT ["docker-registry", "serve"]
FROM redis AS prometheus
ENTRYPOINT ["prometheus"]
