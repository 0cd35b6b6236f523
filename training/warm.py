"""Imported by a warm process only: what torch itself imports late, at the first step, save or load; and the
hook by which the steps of scripts that call nothing of ours are seen.

Which modules these are depends on torch's version. One that is not there is no matter: a rank then
imports what it needs itself, and is some milliseconds later.
"""

from contextlib import suppress
from importlib import import_module

from .steps import watch_training

_LATE = ("torch.profiler._cupti_monitor", "torch.utils.serialization.config")

for _name in _LATE:
    with suppress(ImportError):
        import_module(_name)
watch_training()
