"""Renders install.yaml and uninstall.yaml from the Helm chart, and gives the chart its copy of the alerts.

Helm 3 and 4 differ in blank lines only, which are left out. Hooks are left out of install.yaml: kubectl knows none, and
the one that there is takes the installation back.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHART = HERE.parent / "helm" / "stafett"
ALERTS = HERE.parent / "monitoring" / "alerts.yaml"
ALERTS_COPY = CHART / "files" / "alerts.yaml"
COMMAND = ("template", "stafett", str(CHART), "--namespace", "stafett", "--kube-version", "1.34")
HEAD = "# Rendered from deploy/helm/stafett by make manifests; do not edit.\n"


def rendered(helm: str) -> dict[Path, str]:
    """Tell what each file has to be. Raises CalledProcessError: if the chart cannot be rendered."""
    values = ("--values", str(HERE / "values.yaml"))
    return {
        HERE / "install.yaml": _render(helm, *values, "--no-hooks"),
        HERE / "uninstall.yaml": _render(helm, *values, "--show-only", "templates/cleanup.yaml"),
    }


def _render(helm: str, *options: str) -> str:
    done = subprocess.run([helm, *COMMAND, *options], check=True, stdout=subprocess.PIPE, text=True)
    return HEAD + "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines() if line.strip())


def main() -> None:
    """Write the files."""
    ALERTS_COPY.write_text(ALERTS.read_text())
    for path, text in rendered(sys.argv[1]).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
