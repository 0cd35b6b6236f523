"""A GPU as its node knows it: what it is, what it reads now, what the driver told of it."""

from dataclasses import dataclass

from ..spec.gpu_health import GpuState
from ..spec.slices import slice_index


@dataclass(frozen=True, slots=True)
class Link:
    """How one GPU reaches another; `width` counts NVLinks and is 0 over PCI."""

    peer_index: int
    kind: str
    width: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """A MIG device. Its two ids are valid until it is destroyed."""

    gpu_instance: int
    compute_instance: int
    uuid: str
    name: str
    memory_total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: facts first, then readings (None: the device does not give it)."""

    index: int
    uuid: str = ""
    name: str = ""
    serial: str = ""
    """Of the board; empty: it has none that the driver tells, as consumers' cards."""
    memory_total_bytes: int = 0
    pci_bus_id: str = ""
    links: tuple[Link, ...] = ()
    numa_node: int | None = None
    """Of the host's memory that is nearest to it."""
    mig_enabled: bool = False
    slices: tuple[Slice, ...] = ()
    """Of a GPU in MIG mode; they share its health."""
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

    @property
    def devices(self) -> dict[int, str]:
        """What of it a task can have: index and uuid of itself or, in MIG mode, of its slices."""
        if not self.mig_enabled:
            return {self.index: self.uuid}
        return {
            slice_index(self.index, one.gpu_instance, one.compute_instance): one.uuid for one in self.slices
        }


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
    cuda_version: str = ""
    """The newest that the driver can run, such as 12.4."""
    gpus: tuple[Gpu, ...] = ()
