"""What scripts log with MLflow also reaches `run.report`: mlflow loads this by its seam for plugins, a run
context provider, which also tags its runs with the job.

Nothing here imports mlflow, which need not be installed, and no tracking server is asked. MLflow has no hook
for metrics: when its first run starts, the two methods of its client that log them are wrapped. A metric that
cannot be reported costs a warning, never the script.
"""

import functools
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ..spec.errors import PacelineError
from .environment import read_environment
from .metrics import NAMES_MAX
from .run import init

_CLIENT: Final = "mlflow.tracking.client"
_RESERVED: Final = frozenset({"self", "step"})
"""Names that `run.report` has for itself."""


class JobContext:
    """mlflow asks it at the start of each run."""

    def __init__(self) -> None:
        self._environment = read_environment(os.environ)
        self._wrapped = False

    def in_context(self) -> bool:
        """Whether this is a process of a job."""
        if self._environment.managed and not self._wrapped:
            self._wrapped = True
            _wrap(sys.modules[_CLIENT].MlflowClient)
        return self._environment.managed

    def tags(self) -> dict[str, str]:
        """Of an mlflow run, to find the job by."""
        found = self._environment
        return {
            "paceline.job": str(found.job),
            "paceline.job_name": found.job_name,
            "paceline.attempt": str(found.attempt),
            "paceline.rank": str(found.rank),
        }


def _wrap(client: Any) -> None:
    reports = _Reports()

    def one(said: Mapping[str, Any]) -> None:
        reports.add([(said["key"], said["value"], said["step"])])

    def several(said: Mapping[str, Any]) -> None:
        reports.add((each.key, each.value, each.step) for each in said["metrics"] or ())

    client.log_metric = _followed(client.log_metric, one)
    client.log_batch = _followed(client.log_batch, several)


def _followed(method: Callable[..., Any], told: Callable[[Mapping[str, Any]], None]) -> Callable[..., Any]:
    """The method, and then what it was given, by name."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def follow(*args: Any, **named: Any) -> Any:
        answer = method(*args, **named)
        given = signature.bind(*args, **named)
        given.apply_defaults()
        told(given.arguments)
        return answer

    return follow


class _Reports:
    """mlflow's autologging calls from threads of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, metrics: Iterable[tuple[str, float, int | None]]) -> None:
        """Names, values and steps, of which mlflow's own is 0 where none is given."""
        by_step: dict[int, dict[str, float]] = {}
        for name, value, step in metrics:
            if name not in _RESERVED:
                by_step.setdefault(step or 0, {})[name] = value
        with self._lock:
            try:
                for step, values in by_step.items():
                    names = list(values)
                    for first in range(0, len(names), NAMES_MAX):
                        init().report(
                            step, **{name: values[name] for name in names[first : first + NAMES_MAX]}
                        )
            except PacelineError as error:
                warnings.warn(f"paceline: not reported to the job: {error}", stacklevel=2)
