# Debian's packages under the names of the images that docker-compose.yml uses, as no registry is reached here.
ARG BASE
ARG STAFETT
FROM ${STAFETT} AS stafett
FROM ${BASE} AS redis
RUN apt-get update -q && \
    apt-get install -y -q --no-install-recommends redis-server docker-registry prometheus wget && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb && \
    install -d -o redis /data
FROM redis AS registry
ENTRYPOINT ["docker-registry", "serve"]
FROM redis AS prometheus
ENTRYPOINT ["prometheus"]
# Not Jaeger, but takes spans as it does.
FROM redis AS jaeger
COPY --from=stafett /opt/stafett /opt/stafett
COPY compose/jaeger.py /tests/compose/
COPY integration/traces/otlp.py /tests/integration/traces/
WORKDIR /
ENTRYPOINT ["/opt/stafett/bin/python", "-m", "tests.compose.jaeger"]
