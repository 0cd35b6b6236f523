"""The file `notice` in a task's folder: what the shim tells the ranks without a word, mapped by both sides.

Byte 0: 1 when the job should stop. At 8: the CLOCK_MONOTONIC at which it is killed (a double; 0: not known).
At 16: the number of the last checkpoint that was asked for (int64). Standard library only.
"""

import struct
from typing import Final, NamedTuple

_FORM: Final = struct.Struct("<B7xdq")
SIZE: Final = _FORM.size


class Notice(NamedTuple):
    stop: bool = False
    kill_at_s: float = 0.0
    save_request: int = 0

    def encode(self) -> bytes:
        return _FORM.pack(self.stop, self.kill_at_s, self.save_request)


def decode(data: bytes) -> Notice:
    stop, kill_at_s, save_request = _FORM.unpack(data)
    return Notice(bool(stop), kill_at_s, save_request)
