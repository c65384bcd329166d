"""Makes an image of random bytes and uploads it: load_image.py REGISTRY NAME:TAG MIB...; one layer for each size.

The same name gives the same bytes, so that loading it again changes nothing.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from pathlib import Path

from stafett.cli.host_platform import own_platform
from stafett.cli.local_cluster.images import make_image
from stafett.cli.local_cluster.upload import upload_image


def main() -> None:
    """Load the image that the arguments describe."""
    registry, name, *sizes_mib = sys.argv[1:]
    with tempfile.TemporaryDirectory() as layout:
        layers = {own_platform(): [int(float(size) * 1024 * 1024) for size in sizes_mib]}
        image = make_image(Path(layout), f"{registry}/{name}", layers, seed=zlib.crc32(name.encode()))
        upload_image(f"http://{registry}", Path(layout), image.name, image.index)
    print(f"{image.name} {image.pulled_bytes(own_platform())}")


if __name__ == "__main__":
    main()
