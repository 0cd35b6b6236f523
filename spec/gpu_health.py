"""What may be done with a GPU, in words that agent, scheduler and client share."""

from enum import StrEnum


class GpuState(StrEnum):
    OK = "ok"
    DRAINED = "drained"
    """It gets no new work; what runs on it goes on."""
    QUARANTINED = "quarantined"
    """It gets no work, and what runs on it is restarted elsewhere."""
