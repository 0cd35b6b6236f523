"""A sweep's worker calls the scheduler: how it is let in, and one connection, patient as long as it takes.

Every call may be repeated without harm. A scheduler that is away is waited for: losing contact is not
failing; only the current attempt of the job is heard.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..proto import channels  # before grpc, which it keeps quiet

# isort: split
import grpc

from ..proto.failures import error_of
from ..proto.generated import studies_pb2_grpc
from .errors import InvalidEnvironment

ADMISSION: Final = "PACELINE_STUDY"
TRY_S: Final = 30.0
PAUSE_FIRST_S: Final = 0.05
PAUSE_MOST_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Admission:
    """To one study, for one attempt of a job."""

    study: int
    scheduler: str
    token: str
    ca_file: str
    insecure: bool


def read_admission(variables: Mapping[str, str]) -> Admission:
    """Raises InvalidEnvironment where there is none."""
    try:
        return Admission(**json.loads(variables[ADMISSION]))
    except (KeyError, ValueError, TypeError):
        raise InvalidEnvironment(
            f"{ADMISSION} is not set as the agent sets it for a sweep's workers",
            hint="this module is run by a sweep whose document has trial.objective; `pace submit sweep.yaml`",
            name=ADMISSION,
        ) from None


class StudyCalls:
    """For several threads."""

    def __init__(self, admission: Admission, given_up: Callable[[], bool] = lambda: False) -> None:
        """`given_up`: asked before a call is tried again. Raises InvalidRequest."""
        ca_file = Path(admission.ca_file) if admission.ca_file else None
        target = channels.target(
            admission.scheduler, admission.token, ca_file=ca_file, insecure=admission.insecure
        )
        self.study = admission.study
        self._given_up = given_up
        self._channel = channels.open_channel(target)
        self._stub: Any = studies_pb2_grpc.StudiesStub(self._channel)

    @classmethod
    def admitted(cls, given_up: Callable[[], bool]) -> "StudyCalls":
        return cls(read_admission(os.environ), given_up)

    def call(self, method: str, request: Any) -> Any:
        """The reply. Raises PacelineError, StaleAttempt when another attempt has taken this one's place."""
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                return getattr(self._stub, method)(request, timeout=TRY_S)
            except grpc.RpcError as failed:
                error = error_of(failed)
            if not error.retryable or self._given_up():
                raise error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MOST_S)

    def close(self) -> None:
        self._channel.close()
