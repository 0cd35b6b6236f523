"""`pace nodes`: what each node has, what is free, and why one takes no work."""

from collections import Counter
from typing import TYPE_CHECKING

import click

from ...spec.gpu_health import GpuState
from ...spec.lifecycle import NodeContact
from .. import views
from . import output as out
from .options import connection, json_option, open_client

if TYPE_CHECKING:
    from ..settings import Settings

COLUMNS = (
    out.Column("node", flex=True),
    out.Column("contact"),
    out.Column("cpus free", right=True),
    out.Column("memory free", right=True),
    out.Column("GPUs free", right=True),
    out.Column("GPU", flex=True, drop=3),
    out.Column("tasks", right=True, drop=1),
    out.Column("labels", flex=True, drop=4),
    out.Column("warm pool", flex=True, drop=5),
    out.Column("containers", flex=True, drop=8),
    out.Column("address", drop=7),
    out.Column("heard", right=True, drop=6),
    out.Column("note", flex=True, drop=2),
)


@click.command(short_help="List nodes: what they have, what is free.")
@click.option("--trust", is_flag=True, help="Say that the nodes which are silent are really gone.")
@json_option
@connection
def nodes(settings: "Settings", output: str, trust: bool) -> None:
    """List nodes: what they have, what is free.

    \b
    JSON: {"nodes": [NODE, ...], "suspected": BOOL}; keys of a NODE: node_id,
    name, address, contact, last_heard_us, capacity, free, gpus, gpu_status,
    containment, warm_pool, labels, taints, environments, container_engine,
    version, driver_version, tasks, reason, cordon ({by, why, since_us, drains,
    tasks_left}, or null: in service). A GPU's state is ok, drained (no new
    work) or quarantined (what ran on it was restarted elsewhere); health says
    why, since_us since when, needs what the driver asks for, slices what it
    offers in MIG mode: index, uuid, name, memory_total_bytes.

    When most nodes vanish at once, the scheduler rather suspects itself and
    replaces none. With --trust you say that they are really gone: the jobs
    of those that stay silent start elsewhere. JSON: {"was_suspected": BOOL,
    "silent": NUMBER}.
    """
    if trust:
        _trust(settings, output)
        return
    with open_client(settings) as client:
        cluster = client.nodes()
    if output == "json":
        out.show_json(cluster)
        return
    if cluster.suspected:
        out.show(
            "most nodes vanished at once: none is replaced until contact returns", style="yellow", err=True
        )
        out.hint("if they are really gone: `pace nodes --trust`")
    if not cluster.nodes:
        out.hint(f"no nodes yet: `pace agent --scheduler {settings.with_found_scheduler().address}` on each")
        return
    rows = [_row(node) for node in sorted(cluster.nodes, key=lambda node: node.name)]
    out.show_table(_without_empty(out.Table(COLUMNS, rows)))


def _trust(settings: "Settings", output: str) -> None:
    with open_client(settings) as client:
        said = client.trust()
    nodes = "1 node" if said.silent == 1 else f"{said.silent} nodes"
    if output == "json":
        out.show_json(said)
    elif said.was_suspected:
        out.show(f"silence counts again: the jobs of {nodes} start elsewhere unless contact returns first")
    else:
        out.show("nothing to do: the scheduler does not suspect itself, and replaces silent nodes by itself")


def _without_empty(table: out.Table) -> out.Table:
    """Most clusters have no labels, many no containers."""
    shown = [
        at
        for at, column in enumerate(COLUMNS)
        if column.title not in ("labels", "containers") or any(row[at] for row in table.rows)
    ]
    rows = [tuple(row[at] for at in shown) for row in table.rows]
    return out.Table(tuple(COLUMNS[at] for at in shown), rows)


def _row(node: views.Node) -> tuple[str, ...]:
    return (
        node.name,
        node.contact,
        f"{out.human_cpus(node.free.cpu_milli)} of {out.human_cpus(node.capacity.cpu_milli)}",
        f"{out.human_bytes(node.free.memory_bytes)} of {out.human_bytes(node.capacity.memory_bytes)}",
        _gpus(node),
        models(node) or "-",
        str(len(node.tasks)),
        _labels(node),
        node.warm_pool,
        "" if node.container_engine.startswith("none") else node.container_engine,
        node.address,
        "now" if node.contact is NodeContact.CONNECTED else _ago(node.last_heard_us),
        note(node),
    )


def _gpus(node: views.Node) -> str:
    """What is free: `3 of 4`, `2 of 4, 0.7 of shared`."""
    if not node.capacity.gpus:
        return "-"
    shared = f", {node.free.gpu_milli / 1000:g} of shared" if node.free.gpu_milli else ""
    return f"{node.free.gpus} of {node.capacity.gpus}{shared}"


def models(node: views.Node) -> str:
    """`8 x NVIDIA H100 80GB HBM3 with 79.6 GiB`; a GPU in MIG mode is its slices."""
    devices = [device for gpu in node.gpus for device in ((gpu,) if not gpu.mig_enabled else gpu.slices)]
    kinds = Counter((one.name, one.memory_total_bytes) for one in devices)
    return ", ".join(
        f"{count} x {name}" + (f" with {out.human_bytes(size_bytes)}" if size_bytes else "")
        for (name, size_bytes), count in kinds.items()
    )


def _labels(node: views.Node) -> str:
    """`block=b1 rack=r3, tainted spot`."""
    labels = " ".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
    taints = " ".join("=".join(filter(None, taint)) for taint in sorted(node.taints.items()))
    return ", ".join(filter(None, (labels, f"tainted {taints}" if taints else "")))


def note(node: views.Node) -> str:
    """The weightiest thing to know: why it takes no work, which GPUs are sick, or nothing."""
    if node.reason is not None:
        return node.reason.text
    return "; ".join(text for gpu in node.gpus if (text := _gpu_note(gpu)))


def _gpu_note(gpu: views.Gpu) -> str:
    """`GPU 1 quarantined 12 min ago: XID 79: fallen off the bus (3 times so far)`."""
    if gpu.state is GpuState.OK:
        return f"GPU {gpu.index} needs {gpu.needs}" if gpu.needs else ""
    since = f" {_ago(gpu.since_us)}" if gpu.since_us else ""
    times = f" ({gpu.quarantines} times so far)" if gpu.quarantines > 1 else ""
    return f"GPU {gpu.index} {gpu.state}{since}: {gpu.health}{times}"


def _ago(at_us: int) -> str:
    return f"{out.human_time(max(0, out.now_us() - at_us))} ago" if at_us else "never"
