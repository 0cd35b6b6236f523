"""In what words a program says that its peer is gone: Python's, torch's, gloo's and NCCL's. What is said in
them follows another failure.
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
