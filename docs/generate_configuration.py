"""Writes docs/configuration.md from the settings models; --check only tells whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stafett.common.settings import ServiceSettings
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings
from stafett.tracker.settings import TrackerSettings

PAGE = Path(__file__).parent / "configuration.md"
SERVICES: dict[str, type[ServiceSettings]] = {
    "tracker": TrackerSettings,
    "node": NodeSettings,
    "gateway": GatewaySettings,
}
INTRODUCTION = """\
# Configuration

Generated from the settings models by `make docs`; do not edit.

Each setting is an environment variable or an option of the service's command (`stafett node --listen-port 7461`);
the option wins. Lists are comma separated, maps are JSON. A service that finds wrong settings lists all of them and
exits with 2.

A setting may also be a file, named like its variable, in the folder that `STAFETT_SETTINGS_DIR` names: for what must
not be in the environment, as a Redis URL with a password. Variables win.
"""

COMMANDS = """
## Commands

`stafett nodes`, `images`, `explain` and `drain` ask the trackers. `stafett doctor` uses the settings of node and
gateway, see [its page](doctor.md); the other commands need none.

| variable | default | meaning |
|---|---|---|
| `STAFETT_TRACKER` | `ipv4:127.0.0.1:7460` | The same as `--tracker`: gRPC target of the trackers. |
| `STAFETT_TLS_CERTIFICATE` | none | PEM file with the certificate to show. Set all three files or none (plain text). |
| `STAFETT_TLS_KEY` | none | PEM file with its private key. |
| `STAFETT_TLS_AUTHORITY` | none | PEM file with the authority that the trackers' certificates must be signed by. |
| `STAFETT_TLS_PEER_NAME` | none | Name that the trackers' certificates must have; empty: their address. |
"""


def page() -> str:
    """Render the whole page."""
    return INTRODUCTION + "".join(_section(name, model) for name, model in SERVICES.items()) + COMMANDS


def _section(name: str, model: type[ServiceSettings]) -> str:
    prefix = str(model.model_config["env_prefix"])
    rows = [_row(prefix, field, info) for field, info in model.model_fields.items()]
    head = f"\n## stafett {name}\n\n| variable | default | meaning |\n|---|---|---|\n"
    return head + "".join(rows)


def _row(prefix: str, field: str, info: FieldInfo) -> str:
    default = "computed" if info.default_factory else _shown(info.default)
    meaning = (info.description or "").replace("|", "\\|")
    return f"| `{prefix}{field.upper()}` | {default} | {meaning} |\n"


def _shown(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ("", (), [], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def write_or_check(path: Path, text: str) -> int:
    """Write a page, or, with --check, compare it; return the exit code."""
    if "--check" not in sys.argv:
        path.write_text(text, "utf-8")
        return 0
    if path.exists() and path.read_text("utf-8") == text:
        return 0
    print(f"{path.name} is not up to date: run make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page()))
