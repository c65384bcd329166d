"""The `stafett` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from stafett.cli.configure.distros import DistroName, distro_of
from stafett.cli.kubernetes.commands import app as kubernetes
from stafett.cli.store_choice import StoreChoice
from stafett.common.errors import StartupFailed

app = typer.Typer(
    help="Stafett hands container images from node to node inside a containerd cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

app.add_typer(kubernetes, name="kubernetes", rich_help_panel="Operate")
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, rich_help_panel="Services")
def healthy(context: typer.Context) -> None:
    """Say whether a part in this container serves: exit code 0 or 1. For health checks.

    The part and its options are arguments, "healthy node --listen-port 7461"; without any it is the one that the
    container's first process runs. STAFETT_TRACKER_*, STAFETT_NODE_* and STAFETT_GATEWAY_* are read as the part does.
    """
    from stafett.cli.healthy import run_healthy

    raise typer.Exit(run_healthy(context.args))


@app.command(rich_help_panel="Look")
def nodes(tracker: TrackerTarget = "ipv4:127.0.0.1:7460", as_json: AsJson = False) -> None:
    """List the nodes: where they stand, what the cluster believes of them and why."""
    from stafett.cli.overview import show_nodes

    raise typer.Exit(show_nodes(tracker, as_json=as_json))


@app.command(rich_help_panel="Look")
def images(tracker: TrackerTarget = "ipv4:127.0.0.1:7460", as_json: AsJson = False) -> None:
    """List the images that nodes hold: how many complete copies there are, in which zones and on which hosts."""
    from stafett.cli.overview import show_images

    raise typer.Exit(show_images(tracker, as_json=as_json))


@app.command(rich_help_panel="Look")
def explain(
    what: Annotated[str, typer.Argument(help='Digest, "sha256:<64 hex>", or image, e.g. registry.example.com/app:1.')],
    asking: Annotated[
        str | None,
        typer.Option("--from", help="Host that would ask, as listed by stafett nodes; without it: who holds."),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="nearest, least-loaded or rendezvous.")] = "nearest",
    tracker: TrackerTarget = "ipv4:127.0.0.1:7460",
    as_json: AsJson = False,
) -> None:
    """Show who holds a digest, or each piece of an image, who would serve it to a host, why, and what goes upstream."""
    from stafett.cli.explain import run_explain

    raise typer.Exit(run_explain(tracker, what, asking, algorithm, as_json=as_json))


@app.command(rich_help_panel="Try")
def pull(
    image: Annotated[str, typer.Argument(help="Image by tag or digest, e.g. registry.example.com/app:1.")],
    via: Annotated[
        list[str],
        typer.Option(help="URL to pull from, e.g. a gateway's; several are tried in order for each request."),
    ],
    to: Annotated[Path, typer.Option(help="OCI layout directory to pull into; made if absent.")],
    platform: Annotated[str | None, typer.Option(help="Platform to pull, instead of this machine's.")] = None,
    all_platforms: Annotated[bool, typer.Option("--all-platforms", help="Pull every platform.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull an image into a directory, checking every digest, and say where the bytes came from."""
    from stafett.cli.host_platform import own_platform
    from stafett.cli.pull_command import run_pull

    wanted = None if all_platforms else platform or own_platform()
    raise typer.Exit(run_pull(image, via, to, platform=wanted, as_json=as_json))


@app.command(rich_help_panel="Try")
def demo(
    store: Annotated[
        StoreChoice, typer.Option(help="Where hosts keep content: private containerds (as root), or OCI layouts.")
    ] = StoreChoice.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="With a smaller image: half the time, less to see.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the cluster running until Ctrl-C, and say how to use it.")
    ] = False,
) -> None:
    """Start a small cluster on this machine, pull an image without and with Stafett, and break things meanwhile."""
    from stafett.cli.demo.demo import run_demo

    raise typer.Exit(run_demo(store, as_json=as_json, quick=quick, keep=keep))


@app.command(rich_help_panel="Operate")
def configure(
    registry: Annotated[
        list[str] | None,
        typer.Option(help='Registry as images name it, e.g. docker.io; "_default" means all others. Repeat for more.'),
    ] = None,
    upstream: Annotated[
        list[str] | None, typer.Option(help="NAME=URL of a registry whose URL is not https://NAME. Repeat for more.")
    ] = None,
    gateway: Annotated[str, typer.Option(help="URL of the gateway's mirror port.")] = "http://127.0.0.1:7462",
    tags: Annotated[str, typer.Option(help="URL of the gateway's tag port.")] = "http://127.0.0.1:7463",
    distro: Annotated[DistroName, typer.Option(help="Whose paths to use.")] = DistroName.CONTAINERD,
    hosts_dir: Annotated[Path | None, typer.Option(help="Folder of mirror files, if not the distribution's.")] = None,
    config: Annotated[Path | None, typer.Option(help="containerd's config.toml, if not the distribution's.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Put everything back as it was.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes, make none.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Like --dry-run; exit with 1 if anything differs.")] = False,
) -> None:
    """Write containerd's mirror files so that these registries, and no others, are pulled through the gateway."""
    from stafett.cli.configure.command import run_configure
    from stafett.cli.configure.wanted import Wanted, gateway_of, registries_of

    if not registry and not remove:
        raise typer.BadParameter("name at least one, or use --remove", param_hint="--registry")
    if registry and remove:
        raise typer.BadParameter("puts all back; to take out some, name those that stay", param_hint="--remove")
    try:
        wanted = Wanted(
            registries_of(registry or (), upstream or ()),
            gateway_of(gateway, tags),
            distro_of(distro, hosts_dir, config),
        )
    except StartupFailed as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(run_configure(wanted, remove=remove, dry_run=dry_run, check=check))


@app.command(rich_help_panel="Operate")
def doctor(
    distro: Annotated[DistroName, typer.Option(help="Whose paths to look at.")] = DistroName.CONTAINERD,
    hosts_dir: Annotated[Path | None, typer.Option(help="Folder of mirror files, if not the distribution's.")] = None,
    config: Annotated[Path | None, typer.Option(help="containerd's config.toml, if not the distribution's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this host's installation, and what to do about it.

    The settings of the node and the gateway are those of STAFETT_NODE_* and STAFETT_GATEWAY_* in the environment, else
    those of the processes that run here. The exit code is 0, 1 with warnings, 2 with failures. docs/doctor.md says what
    each line means.
    """
    from stafett.cli.doctor.command import run_doctor
    from stafett.cli.doctor.setup import read_setup

    try:
        setup = read_setup(distro_of(distro, hosts_dir, config))
    except StartupFailed as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(run_doctor(setup, as_json=as_json))


@app.command(rich_help_panel="Operate")
def drain(
    node_id: Annotated[str, typer.Argument(envvar="STAFETT_NODE_NODE_ID", help="Node as listed by stafett nodes.")],
    undo: Annotated[bool, typer.Option("--undo", help="Put it back into service.")] = False,
    tracker: TrackerTarget = "ipv4:127.0.0.1:7460",
) -> None:
    """Take a node out of service: no new streams, those that run go on."""
    from stafett.cli.overview import drain_node

    raise typer.Exit(drain_node(tracker, node_id, draining=not undo))


@app.command(rich_help_panel="Operate")
def certs(
    folder: Annotated[Path, typer.Argument(help="Folder of the authority; each certificate is in a folder below it.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Names and addresses of one certificate, e.g. host-1,10.0.0.1. Repeat for more."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long a new certificate is valid.")] = 90,
    new_authority: Annotated[
        bool,
        typer.Option("--new-authority", help="Make another authority, believed beside the old one; renew nothing yet."),
    ] = False,
) -> None:
    """Make an authority and certificates for the tls settings, or renew what is running out; keep what is good.

    Without --name: those that are there, or one for localhost. Copy tls.crt, tls.key and ca.crt from a host's folder
    to that host, and ca.key nowhere. Parts that run take new files by themselves.
    """
    from stafett.cli.certs import make_certificates

    names = name or ([] if any(folder.glob("*/tls.crt")) else ["localhost,127.0.0.1,::1"])
    try:
        for line in make_certificates(folder, names, days, new_authority=new_authority):
            typer.echo(line)
    except (StartupFailed, OSError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error


@app.command("version", rich_help_panel="Look")
def show_version() -> None:
    """Print the version."""
    from stafett.common.service import version

    typer.echo(version())


def main() -> None:
    """Entry point of the `stafett` command."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # services set up their own logs
    app()
