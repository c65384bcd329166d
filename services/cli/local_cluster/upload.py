"""Uploads an image from an OCI layout to a registry: for demos and tests, which need one to pull."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2

from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import StartupFailed
from stafett.common.oci import Descriptor, Index, parse_manifest
from stafett.common.reference import Reference


def upload_image(registry_url: str, layout: Path, name: str, target: Descriptor, authority: Path | None = None) -> None:
    """Upload blobs, manifests, then the tag; blobs that the registry has are not sent again.

    `authority` has signed the registry's certificate, where it is none that everybody believes.

    Raises:
        StartupFailed: if the registry refuses something. httpx2.HTTPError: if it does not answer.
    """
    reference = Reference.parse(name)
    base = f"{registry_url}/v2/{reference.repository}"
    verify = ssl.create_default_context(cafile=authority) if authority else True
    with httpx2.Client(trust_env=False, timeout=60, verify=verify) as client:
        content = blob_path(layout, target.digest).read_bytes()
        parsed = parse_manifest(content)
        children = parsed.manifests if isinstance(parsed, Index) else (target,)
        for child in children:
            document = blob_path(layout, child.digest).read_bytes()
            manifest = parse_manifest(document)
            assert not isinstance(manifest, Index)
            for blob in manifest.children:
                _upload_blob(client, base, layout, blob.digest)
            _upload_manifest(client, base, str(child.digest), document, child.media_type)
        _upload_manifest(client, base, reference.tag, content, target.media_type)


def _upload_blob(client: httpx2.Client, base: str, layout: Path, digest: Digest) -> None:
    if client.head(f"{base}/blobs/{digest}").status_code == 200:
        return
    location = client.post(f"{base}/blobs/uploads/").headers["Location"]
    separator = "&" if "?" in location else "?"
    _check_created(
        client.put(
            f"{location}{separator}digest={digest}",
            content=blob_path(layout, digest).read_bytes(),
            headers={"Content-Type": "application/octet-stream"},
        )
    )


def _upload_manifest(client: httpx2.Client, base: str, reference: str, content: bytes, media_type: str) -> None:
    _check_created(client.put(f"{base}/manifests/{reference}", content=content, headers={"Content-Type": media_type}))


def _check_created(answer: httpx2.Response) -> None:
    if answer.status_code != 201:
        raise StartupFailed(f"{answer.request.url}: {answer.status_code} {answer.text[:500]}")
