# Everything a contributor types. Each target does its own set-up; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

PROTOC = $(BIN)/python -m grpc_tools.protoc --python_out=src --mypy_out=quiet:src
GRPC_OUT = --grpc_python_out=src --mypy_grpc_out=quiet,async_only:src

.PHONY: protos
protos: $(VENV)/ready ## regenerate services/api from protos/
	rm -rf services/api && mkdir -p services/api
	$(PROTOC) -Iprotos protos/stafett/api/v1/types.proto
	$(PROTOC) $(GRPC_OUT) -Iprotos protos/stafett/api/v1/tracker.proto protos/stafett/api/v1/node.proto
	$(PROTOC) $(GRPC_OUT) -Istafett/api/containerd=protos/containerd -Istafett/api/cri=protos/cri \
	  protos/containerd/*.proto protos/cri/*.proto
