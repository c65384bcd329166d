"""The `stafett` command."""

from __future__ import annotations

from typing import Annotated

import typer

from stafett.common.service import version

app = typer.Typer(
    help="Stafett hands container images from node to node inside a containerd cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

_SERVICE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
TrackerTarget = Annotated[
    str,
    typer.Option(
        "--tracker",
        envvar="STAFETT_TRACKER",
        help="gRPC target of the trackers: dns:///name:port, or ipv4:addr:port,addr:port.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


@app.command(context_settings=_SERVICE, rich_help_panel="Services")
def tracker(context: typer.Context) -> None:
    """Run a tracker: who is alive, who holds what (--help lists its settings)."""
    from stafett.tracker.app import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=_SERVICE, rich_help_panel="Services")
def node(context: typer.Context) -> None:
    """Run a host's node: shares the content of its containerd (--help lists its settings)."""
    from stafett.node.app import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=_SERVICE, rich_help_panel="Services")
def gateway(context: typer.Context) -> None:
    """Run a host's gateway: the mirror that containerd pulls from (--help lists its settings)."""
    from stafett.gateway.app import main as run

    raise typer.Exit(run(context.args))


@app.command(rich_help_panel="Look")
def nodes(tracker: TrackerTarget = "ipv4:127.0.0.1:7460", as_json: AsJson = False) -> None:
    """List the nodes: where they stand, what the cluster believes of them and why."""
    from stafett.cli.overview import show_nodes

    raise typer.Exit(show_nodes(tracker, as_json=as_json))


@app.command(rich_help_panel="Look")
def images(tracker: TrackerTarget = "ipv4:127.0.0.1:7460", as_json: AsJson = False) -> None:
    """List the images that nodes hold, and how many complete copies there are."""
    from stafett.cli.overview import show_images

    raise typer.Exit(show_images(tracker, as_json=as_json))


@app.command("version", rich_help_panel="Look")
def show_version() -> None:
    """Print the version."""
    typer.echo(version())


def main() -> None:
    """Entry point of the `stafett` command."""
    app()
