"""A GPU as its node knows it: what it is, what it reads now, what the driver told of it."""

from dataclasses import dataclass

from ..spec.gpu_health import GpuState


@dataclass(frozen=True, slots=True)
class Link:
    """How one GPU reaches another; `width` counts NVLinks and is 0 over PCI."""

    peer_index: int
    kind: str
    width: int = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: facts first, then readings (None: the device does not give it)."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_total_bytes: int = 0
    pci_bus_id: str = ""
    links: tuple[Link, ...] = ()
    numa_node: int | None = None
    """Of the host's memory that is nearest to it."""
    mig_enabled: bool = False
    mig_devices: tuple[str, ...] = ()
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    ecc_uncorrected: int | None = None
    last_xid: int | None = None
    state: GpuState = GpuState.OK
    health: str = "ok"
    """Or what is wrong, for a person."""
    needs: str = ""
    """What the driver asks for, "a reset: ..."; without that, what is out of service stays so."""
    since_us: int = 0
    """When `state` became other than OK, wall clock."""
    quarantines: int = 0
    """How often it has been other than OK on this node."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A fault that the driver told of. `xid` 0: a double-bit ECC error without a number."""

    index: int
    xid: int
    heard_s: float
    """time.monotonic()."""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """`status` is "ok", or for a person why there is no GPU to offer."""

    status: str
    driver_version: str = ""
    gpus: tuple[Gpu, ...] = ()
