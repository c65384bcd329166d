"""Checks objects against the Kubernetes schemas that kubernetes-validate carries, and against ours for other kinds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate import utils
from referencing import Registry, Resource

from tests.deploy.rendering import Object

OLDEST, NEWEST = "1.29", "1.37"
"""The first Kubernetes that Chart.yaml allows, and the newest that schemas are here for."""
_OTHERS = ("cert-manager.io/v1", "monitoring.coreos.com/v1")


def faults(item: Object, version: str) -> list[str]:
    """Tell what is wrong with an object, by the rules of this Kubernetes; unknown fields are."""
    if item["apiVersion"] in _OTHERS:
        validator, checked = _own(item["kind"]), item["spec"]
    else:
        validator, checked = _validator(item["kind"].lower(), item["apiVersion"], version), item
    where = f"{item['kind']}/{item['metadata']['name']}"
    return [f"{where}: {error.json_path}: {error.message}" for error in validator.iter_errors(checked)]


@cache
def _validator(kind: str, api_version: str, version: str) -> Any:
    group, _, number = api_version.rpartition("/")
    name = f"{kind}-{group.partition('.')[0] + '-' if group else ''}{number}.json"
    schema = utils.schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{name}", version)
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions(version))


@cache
def _definitions(version: str) -> Any:
    shared = utils.schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    return Resource.from_contents(shared) @ Registry()


@cache
def _own(kind: str) -> Any:
    own = yaml.safe_load(Path(__file__).with_name("crd_schemas.yaml").read_text())
    return Draft202012Validator({**own["kinds"][kind], "definitions": own["definitions"]})
