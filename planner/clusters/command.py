"""`plan topology` and `plan discover`: show a cluster as it was read, or write it as a cluster file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from planner import console
from planner.question import options

_CLUSTER = (
    click.option("--gpus", metavar="N", help="How many GPUs: as for `plan` [default: all, or one node of a preset]."),
    click.option("--fabric", "fabric", multiple=True, metavar="FILE", help="What joins the hosts, as for `plan`."),
    click.option("--hosts", "hosts", default=None, metavar="LIST", help="The hosts to use, as for `plan`."),
    click.option("--device", "device", default=None, metavar="NAME", help="The GPUs of a printed host."),
)


def _of_cluster(default: str) -> Callable[[options.F], options.F]:
    def add(command: options.F) -> options.F:
        text = "A preset, `local`, or files, as for `plan`."
        named = click.option("--cluster", "cluster", default=default, show_default=True, metavar="NAME|FILE", help=text)
        for option in (*reversed(_CLUSTER), named):
            command = option(command)
        return command

    return add


@click.command(cls=console.NoEmpty)
@_of_cluster("local")
def topology(**given: Any) -> None:
    """Draw the cluster, and say what is believed of each kind of path: rate, latency, source."""
    from planner.clusters.drawing import lines
    from planner.screens.lines import show

    show(lines(_cluster(given)))


@click.command(cls=console.NoEmpty)
@_of_cluster("local")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to write the cluster file.")
def discover(output: str, **given: Any) -> None:
    """Write this machine (or what --cluster and --fabric print) as a cluster file, to be edited and planned for."""
    from cost_models.hardware.cluster_writing import cluster_yaml
    from planner.files import check_target, write_whole
    from planner.screens.layout_lines import cluster_line
    from planner.screens.lines import show

    check_target(output, "-o")
    cluster = _cluster(given)
    write_whole(output, cluster_yaml(cluster))
    show([cluster_line(cluster), f"Wrote {output}. Next: plan --cluster {output} --ctx 128K"])


def _cluster(given: dict[str, Any]) -> Any:
    from cost_models.hardware.cluster import Cluster

    gpus = options.whole(given["gpus"], "--gpus") if given["gpus"] is not None else None
    hosts = options.host_list(given["hosts"]) if given["hosts"] is not None else ()
    return Cluster.load(given["cluster"], gpus=gpus, fabrics=given["fabric"], device=given["device"], hosts=hosts)
