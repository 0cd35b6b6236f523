"""Attributes of trials that are ours, which the scheduler and those who tell trials have to call alike."""

from typing import Final

WHY: Final = "why"
"""Of a user attribute: why the trial ended otherwise than COMPLETE, or is about to."""
FIXED: Final = "fixed_params"
"""Optuna's system attribute of a trial that waits: values that are taken as they are."""
