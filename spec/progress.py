"""How a run says how far it is to go, so that the scheduler can say how long that takes."""

from typing import Final

TOTAL_STEPS: Final = "total_steps"
"""The metric with the number of steps that a run plans."""
