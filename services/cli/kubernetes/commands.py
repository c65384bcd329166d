"""`stafett kubernetes ...`: what the chart's pods run beside the parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="What the pods of the Helm chart run beside the parts; needs a pod's service account.")
NodeName = Annotated[str, typer.Option("--node", help="Kubernetes node of this pod.")]


@app.command()
def topology(
    node: NodeName,
    to: Annotated[Path, typer.Option(help="Folder for the settings; see STAFETT_SETTINGS_DIR.")],
    region_label: Annotated[str, typer.Option(help="Label with the region.")] = "topology.kubernetes.io/region",
    zone_label: Annotated[str, typer.Option(help="Label with the zone.")] = "topology.kubernetes.io/zone",
    rack_label: Annotated[str, typer.Option(help="Label with the rack.")] = "topology.kubernetes.io/rack",
) -> None:
    """Write region, zone and rack of a host, by its node's labels, as settings for its node and gateway."""
    from stafett.cli.kubernetes.api import ApiFailed, own_cluster
    from stafett.cli.kubernetes.topology import write_topology

    try:
        with own_cluster() as api:
            found = write_topology(api, node, (region_label, zone_label, rack_label), to)
    except (ApiFailed, OSError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{node} stands in region {found.region!r}, zone {found.zone!r}, rack {found.rack!r}")


@app.command()
def untaint(
    node: NodeName,
    taint: Annotated[str, typer.Option(help="Key of the taint.")] = "stafett.io/not-ready",
    gateway: Annotated[str, typer.Option(help="URL of the gateway's mirror port.")] = "http://127.0.0.1:7462",
) -> None:
    """Take a start-up taint off a node once its gateway answers, each time that it is there; runs until SIGTERM."""
    from stafett.cli.kubernetes.taint import keep_untainted

    keep_untainted(node, taint, gateway)


@app.command("await-daemonset")
def await_one(
    name: Annotated[str, typer.Argument(help="Name of the DaemonSet.")],
    namespace: Annotated[str, typer.Option(help="Its namespace.")],
    timeout_seconds: Annotated[float, typer.Option(min=0, help="Longest time to wait.")] = 300,
) -> None:
    """Wait until a DaemonSet has a ready pod on every host; exit code 1 if that takes too long."""
    from stafett.cli.kubernetes.api import ApiFailed, own_cluster
    from stafett.cli.kubernetes.cleanup import await_daemonset

    try:
        with own_cluster() as api:
            done = await_daemonset(api, namespace, name, timeout_seconds, typer.echo)
    except ApiFailed as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    if not done:
        typer.echo(f"gave up: see kubectl -n {namespace} get pods -o wide for the hosts that are missing", err=True)
        raise typer.Exit(1)
