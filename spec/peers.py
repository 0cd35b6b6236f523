"""In what words a program says that its peer is gone: Python's, torch's, gloo's and NCCL's. What is said in
them follows another failure. And how torch's process groups are called.
"""

import re
from typing import Final

PEER_GONE: Final = re.compile(
    r"connection (closed|reset|refused|aborted)|broken ?pipe|socket (closed|timeout)|DistNetworkError"
    r"|ncclRemoteError|remote process exited|NCCL communicator was aborted|ncclCommAbort"
    r"|Watchdog caught collective operation timeout|wait timeout after \d|Timed out waiting \d+ ?ms"
    r"|failed to (recv|send), got|(recv|send)(Value|Bytes|Vector) failed|peer (closed|is gone|exited)",
    re.IGNORECASE,
)

DEFAULT_GROUP: Final = "0"
"""torch's own name of the group that `init_process_group` makes."""


def group_text(name: str) -> str:
    """`the default group`, `group 1`: torch's names may be hashes, of which the beginning tells."""
    return "the default group" if name == DEFAULT_GROUP else f"group {name[:16]}"
