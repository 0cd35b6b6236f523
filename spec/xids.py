"""NVIDIA's XID numbers: whose fault each is, in a sentence for people, and what makes the GPU well again.

After the catalog for Ampere and newer in NVIDIA's "XID Errors", as it was on 2026-11-24
(docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html). The remedy is its "immediate action", the
blame what it says of causes; where it leaves these open, an engine that stops is the device's.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Blame(StrEnum):
    """Whose fault it is."""

    PROGRAM = "program"
    DEVICE = "device"
    LINK = "link"
    UNKNOWN = "unknown"


class Remedy(StrEnum):
    """What makes the GPU usable again, as NVIDIA says."""

    NOTHING = "nothing"
    RESTART = "restart"
    """Of what ran on it; then it may be used again."""
    RESET = "reset"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class Xid:
    number: int
    blame: Blame
    meaning: str
    remedy: Remedy

    def __str__(self) -> str:
        return f"XID {self.number}: {self.meaning}"


_P, _D, _L = Blame.PROGRAM, Blame.DEVICE, Blame.LINK
_NOTHING, _RESTART, _RESET, _REBOOT = Remedy.NOTHING, Remedy.RESTART, Remedy.RESET, Remedy.REBOOT

_TABLE: Final[tuple[tuple[int, Blame, str, Remedy], ...]] = (
    (8, _D, "the GPU stopped processing", _RESTART),
    (11, _P, "an invalid or corrupted stream of commands", _RESTART),
    (13, _P, "an exception in a kernel: mostly an index out of bounds, or an illegal instruction", _RESTART),
    (14, _P, "an error that a program injected", _NOTHING),
    (25, _P, "an invalid stream of commands", _RESTART),
    (31, _P, "MMU fault: an illegal address in the program", _RESTART),
    (32, _L, "a corrupted stream of commands: mostly the quality of the PCI link", _RESTART),
    (37, _D, "an error in the driver's firmware", _NOTHING),
    (38, _D, "the driver's firmware timed out", _NOTHING),
    *((number, _D, "an exception in a copy engine", _RESTART) for number in (39, 40, 41)),
    (43, _P, "the program ran into an error and its channel was stopped; the GPU is healthy", _NOTHING),
    (44, _D, "a fault during a context switch", _NOTHING),
    (45, _P, "what was left of a program that ended early was removed", _NOTHING),
    (46, _D, "the GPU stopped processing", _RESET),
    (48, _D, "double-bit ECC error: memory could not be corrected", _RESET),
    (54, _D, "its auxiliary power is not connected", _REBOOT),
    (60, _P, "an exception in the video processor", _RESTART),
    (62, _D, "its internal micro-controller halted", _RESET),
    (63, _D, "a row of its memory is to be remapped", _NOTHING),
    (64, _D, "a row of its memory could not be remapped", _RESET),
    (66, _D, "an illegal access by the driver", _NOTHING),
    (67, _D, "an illegal access by the driver", _NOTHING),
    (68, _P, "an exception in the video decoder", _RESTART),
    (69, _P, "a command that the engine does not know", _RESTART),
    *((number, _D, "an error in a copy engine", _RESTART) for number in (70, 71, 72, 75, 76, 77, 85)),
    (74, _L, "NVLink error: the way to another GPU or a switch", _RESET),
    (79, _D, "fallen off the bus", _REBOOT),
    (80, _P, "corrupted data was sent to the GPU", _RESTART),
    *(
        (number, _P, "an exception in a video or image engine", _RESTART)
        for number in (82, 83, 84, 86, 88, 89)
    ),
    (92, _D, "many single-bit ECC errors, all corrected", _NOTHING),
    (93, _D, "its configuration memory may not be written so often", _NOTHING),
    (94, _D, "contained memory error: what ran on it has lost data, nothing else has", _RESTART),
    (95, _D, "uncontained memory error: anything that ran on it may have lost data", _RESET),
    *((number, _P, "an exception in a video or image engine", _RESTART) for number in range(96, 106)),
    (106, _D, "a test message of its management interface", _NOTHING),
    (107, _D, "a test message of its management interface", _NOTHING),
    (109, _D, "a context switch timed out", _RESET),
    (110, _D, "security fault", _RESET),
    (119, _D, "its system processor (GSP) does not answer", _RESET),
    (120, _D, "an error on its system processor (GSP)", _RESET),
    (121, _L, "errors on the link to the CPU, all corrected", _NOTHING),
    *((number, _D, "an error in a copy engine", _RESTART) for number in range(126, 136)),
    (136, _L, "an NVLink could not be trained", _RESET),
    (137, _P, "an illegal address in another GPU's memory, over NVLink", _NOTHING),
    (139, _P, "an exception in a video or image engine", _RESTART),
    (140, _D, "an ECC error that was not dealt with", _RESET),
    (141, _D, "an error in CUDA's fast path", _NOTHING),
    (142, _P, "an exception in a video or image engine", _RESTART),
    (143, _D, "the GPU could not be initialized", _RESET),
    *((number, _L, "NVLink error", _RESET) for number in range(144, 151)),
    (154, _D, "what it needs to recover has changed", _NOTHING),
    (155, _L, "an NVLink was taken down by software", _RESET),
    (156, _D, "a resource of it is to be retired", _RESET),
    (157, _D, "a resource of it could not be retired, for lack of spare ones", _NOTHING),
    (158, _D, "the GPU timed out for good", _RESET),
    (160, _D, "a channel of its memory was retired", _NOTHING),
    (161, _D, "a channel of its memory could not be retired", _NOTHING),
    *((number, _D, "its power smoothing has changed", _NOTHING) for number in range(162, 166)),
    (167, _D, "PCI Express timed out for good", _RESET),
    (168, _D, "errors in protected memory: less memory is left", _RESET),
    (169, _D, "its security processor halted", _RESET),
    (171, _D, "an error in device memory that could not be corrected", _RESET),
    (172, _D, "an error in on-chip memory that could not be corrected", _RESET),
)

XIDS: Final[dict[int, Xid]] = {row[0]: Xid(*row) for row in _TABLE}

SYMPATHETIC: Final = frozenset({14, 45, 106, 107, 154})
"""They follow from something else (a process that was killed, another XID) and explain no failure."""


def xid_of(number: int) -> Xid:
    """Also for a number that is not in the table: unknown, and only what ran there is to be restarted."""
    known = XIDS.get(number)
    return known or Xid(number, Blame.UNKNOWN, "not known here; see NVIDIA's XID catalog", Remedy.RESTART)
