"""What a server tells of itself: where it answers, in its task's journal."""

import os
from pathlib import Path
from typing import Final

from ..proto.shim_line import ShimLink
from ..spec.errors import Unavailable

TELL_S: Final = 30.0


def tell_serving(url: str) -> None:
    """Returns when it is durable; nothing, where no agent has started this. Raises Unavailable."""
    folder = os.environ.get("PACELINE_TASK_FOLDER")
    if folder and ShimLink(Path(folder)).ask({"op": "serving", "url": url}, TELL_S) is None:
        raise Unavailable(f"the shim of this task, in {folder}, did not take down that it answers at {url}")


def node_address() -> str:
    """By which other nodes reach this one, as its agent found."""
    return os.environ.get("PACELINE_NODE_ADDRESS", "127.0.0.1")
