"""The few requests to the Kubernetes API that the chart's pods make, with the pod's own service account.

Three requests do not need the official client, which brings some 30 MB into the image.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httpx2

from stafett.common.errors import StartupFailed

CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where kubelet puts a pod's token and the API server's authority."""
REQUEST_SECONDS = 5.0

Json = Mapping[str, object]


class ApiFailed(StartupFailed):
    """The API server did not answer, or refused; the message says which and why."""


class ApiConflict(ApiFailed):
    """Somebody else changed the object at the same time: read it again."""


class KubernetesApi:
    """A connection to the API server."""

    def __init__(self, client: httpx2.Client, token: Path) -> None:
        self._client = client
        self._token = token

    def get(self, path: str) -> Json:
        """Read an object. Raises ApiFailed."""
        return self._ask("GET", path)

    def merge(self, path: str, change: Json) -> Json:
        """Change an object by a merge patch; with its resourceVersion in it, only if nobody else did meanwhile.

        Raises:
            ApiFailed: an `ApiConflict` if somebody did.
        """
        return self._ask("PATCH", path, change)

    def _ask(self, method: str, path: str, change: Json | None = None) -> Json:
        try:  # the token is read each time: kubelet renews it
            headers = {"Authorization": f"Bearer {self._token.read_text().strip()}"}
            if change is not None:
                headers["Content-Type"] = "application/merge-patch+json"
            answer = self._client.request(method, path, headers=headers, json=change)
            body = answer.json()
        except (OSError, httpx2.HTTPError, ValueError) as error:
            raise ApiFailed(f"{method} {path}: the API server does not answer: {error}") from error
        if answer.is_success:
            return cast(Json, body)
        said = f"{method} {path}: the API server says {answer.status_code}: {body.get('message', '')}"
        raise ApiConflict(said) if answer.status_code == httpx2.codes.CONFLICT else ApiFailed(said)


@contextmanager
def own_cluster(credentials: Path | None = None) -> Iterator[KubernetesApi]:
    """Connect to the API server of the cluster that this pod runs in.

    Raises:
        ApiFailed: if this is no pod, or it has no service account token.
    """
    folder = credentials or CREDENTIALS
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ApiFailed("KUBERNETES_SERVICE_HOST is not set: this is meant for pods")
    try:
        trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    except OSError as error:
        raise ApiFailed(
            f"{folder / 'ca.crt'} cannot be read: {error}; the pod needs its service account's token"
        ) from error
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    with httpx2.Client(base_url=url, verify=trusted, timeout=REQUEST_SECONDS, trust_env=False) as client:
        yield KubernetesApi(client, folder / "token")
