"""An OCI image layout directory (image-spec, "Image Layout"), read and written.

Blobs become visible by rename, the image list by atomic replacement, so readers never see half of anything. A blob
that is still being received lies in ingest/<hex>, written in order; that folder is ours, the spec does not know it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import CorruptContent, DigestInvalid, StartupFailed
from stafett.common.oci import Descriptor, StoredImage

REF_NAME = "org.opencontainers.image.ref.name"
UPDATED_AT = "io.stafett.updated-at-unix-ms"
SIZE_NOTE = ".size"
"""End of the name of the note that tells how large a file under way will be."""


def ensure_layout(root: Path) -> None:
    """Make root an image layout if it is empty or absent; leave an existing one as it is.

    Raises:
        StartupFailed: if root holds something else, or cannot be written.
    """
    marker = root / "oci-layout"
    if marker.exists():
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise StartupFailed(f"{root} is not empty and not an OCI image layout: name another directory")
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "ingest").mkdir()
        _write_atomically(root / "index.json", {"schemaVersion": 2, "manifests": []})
        _write_atomically(marker, {"imageLayoutVersion": "1.0.0"})
    except OSError as error:
        raise StartupFailed(f"cannot make an OCI image layout in {root}: {error.strerror}") from error


def remove_everything(root: Path) -> None:
    """Take all images and blobs out of a layout."""
    _write_atomically(root / "index.json", {"schemaVersion": 2, "manifests": []})
    for blob in (root / "blobs" / "sha256").iterdir():
        blob.unlink()


def read_images(root: Path) -> tuple[tuple[StoredImage, ...], tuple[str, ...]]:
    """Read the named images of a layout; entries without a name are skipped silently (they are reachable by digest).

    Where a foreign writer has not noted when an image changed, it is the file's time.

    Returns the images and, for people, one line for each entry that is damaged. A missing index.json is an empty list.

    Raises:
        OSError, ValueError: if index.json cannot be read or is not JSON.
    """
    path = root / "index.json"
    try:
        text = path.read_text("utf-8")
        modified_ms = int(path.stat().st_mtime * 1000)
    except FileNotFoundError:
        return (), ()
    document = json.loads(text)
    entries = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("index.json has no list of manifests")
    images: list[StoredImage] = []
    problems: list[str] = []
    for number, entry in enumerate(entries):
        try:
            image = _image(entry, modified_ms)
        except (DigestInvalid, ValueError, TypeError, KeyError) as error:
            problems.append(f"entry {number} of index.json is damaged: {error}")
            continue
        if image is not None:
            images.append(image)
    return tuple(images), tuple(problems)


def add_image(root: Path, name: str, target: Descriptor) -> None:
    """Record (or move) an image name in index.json, stamped with the present time."""
    path = root / "index.json"
    document = json.loads(path.read_text("utf-8"))
    kept = [e for e in document["manifests"] if e.get("annotations", {}).get(REF_NAME) != name]
    annotations = {REF_NAME: name, UPDATED_AT: str(time.time_ns() // 1_000_000)}
    entry = {
        "mediaType": target.media_type,
        "digest": str(target.digest),
        "size": target.size_bytes,
        "annotations": annotations,
    }
    _write_atomically(path, {**document, "manifests": [*kept, entry]})


def remove_image(root: Path, name: str) -> None:
    """Forget an image name; its blobs stay."""
    path = root / "index.json"
    document = json.loads(path.read_text("utf-8"))
    kept = [e for e in document["manifests"] if e.get("annotations", {}).get(REF_NAME) != name]
    _write_atomically(path, {**document, "manifests": kept})


class BlobWriter:
    """Receives one blob in order and commits it when its digest is right. Not safe for two writers of one digest.

    An earlier unfinished file is continued: `offset` tells from where. The size, where it is known, is noted beside the
    file for those who read it while it grows.
    """

    def __init__(self, root: Path, digest: Digest, size_bytes: int = 0) -> None:
        self._root = root
        self._digest = digest
        self.path = root / "ingest" / digest.hex
        self.path.parent.mkdir(exist_ok=True)
        self._hash = hashlib.sha256()
        if size_bytes:
            _size_note(self.path).write_text(str(size_bytes), "ascii")
        self.offset = self._load_prefix()
        self._file = self.path.open("ab", buffering=0)

    def write(self, piece: bytes | memoryview) -> None:
        """Append the next bytes."""
        self._file.write(piece)
        self._hash.update(piece)
        self.offset += len(piece)

    def commit(self) -> Path:
        """Check the digest and publish the blob; return its path.

        Raises:
            CorruptContent: if the bytes are wrong; what was received is dropped.
        """
        self._file.close()
        _size_note(self.path).unlink(missing_ok=True)
        if self._hash.hexdigest() != self._digest.hex:
            self.path.unlink()
            raise CorruptContent(self._digest, "the download")
        final = blob_path(self._root, self._digest)
        self.path.chmod(0o444)
        self.path.rename(final)
        return final

    def close(self) -> None:
        """Close the file and keep what was received; harmless after commit."""
        self._file.close()

    def _load_prefix(self) -> int:
        try:
            with self.path.open("rb") as received:
                while piece := received.read(1024 * 1024):
                    self._hash.update(piece)
                return received.tell()
        except FileNotFoundError:
            return 0


def expected_size(unfinished: Path) -> int:
    """Tell the size that a file under way will have; 0 if nobody noted it."""
    try:
        return int(_size_note(unfinished).read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _size_note(unfinished: Path) -> Path:
    return unfinished.with_suffix(SIZE_NOTE)


def _image(entry: object, modified_ms: int) -> StoredImage | None:
    if not isinstance(entry, dict):
        raise ValueError("it is not an object")
    annotations = entry.get("annotations") or {}
    size = entry["size"]
    if not isinstance(annotations, dict) or not isinstance(size, int):
        raise ValueError("wrong annotations or size")
    name = annotations.get(REF_NAME)
    if not isinstance(name, str):
        return None
    target = Descriptor(str(entry.get("mediaType", "")), Digest.parse(str(entry["digest"])), size)
    return StoredImage(name, target, int(annotations.get(UPDATED_AT, modified_ms)))


def _write_atomically(path: Path, document: dict[str, object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document), "utf-8")
    temporary.rename(path)
