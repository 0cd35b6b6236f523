"""The studies' service as Optuna's storage needs it: one connection, patient, for threads, pickles and forks.

Every call may be repeated without harm: what is made, and who gets a waiting trial, carries its key. So a
scheduler that restarts meanwhile is waited for, as `Client` does.
"""

import os
import time
from typing import Any, Final

from ..proto import channels  # before grpc, which it keeps quiet

# isort: split
import grpc

from ..proto.failures import error_of
from ..proto.generated import studies_pb2_grpc
from ..spec.errors import NotFound
from .base import Base
from .patience import Patience

TRY_S: Final = 30.0


class StudyLink(Base):
    """Connects with the first call, and again in a process that was forked or unpickled it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._options = options
        self._opened: tuple[int, grpc.Channel, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self._options

    def __setstate__(self, options: dict[str, Any]) -> None:
        self.__init__(**options)  # type: ignore[misc]

    def call(self, method: str, request: Any, *, gone_is_done: bool = False) -> Any:
        """The reply. `gone_is_done`: what a repeated try does not find any more, the first has removed; then
        None. Raises PacelineError."""
        patience = Patience(self._patience_s)
        again = False
        while True:
            try:
                return getattr(self._stub(), method)(request, timeout=TRY_S)
            except grpc.RpcError as failed:
                error = error_of(failed)
            if again and gone_is_done and isinstance(error, NotFound):
                return None
            time.sleep(self._pause_s(patience, error))
            again = True

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    def _stub(self) -> Any:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            channel = channels.open_channel(self._target)
            opened = self._opened = (os.getpid(), channel, studies_pb2_grpc.StudiesStub(channel))
        return opened[2]
