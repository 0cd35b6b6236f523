"""The file `notice` in a task's folder: what the shim tells the ranks without a word, mapped by both sides.

Byte 0: 1 when the job should stop. Byte 1: 1 when its ranks should not end by that, but stay up for the next
attempt. At 8: the CLOCK_MONOTONIC at which it is killed (a double; 0: not known). At 16: the number of the
last checkpoint that was asked for (int64). Standard library only.
"""

import struct
from typing import Final, NamedTuple

_FORM: Final = struct.Struct("<BB6xdq")
SIZE: Final = _FORM.size


class Notice(NamedTuple):
    stop: bool = False
    kill_at_s: float = 0.0
    save_request: int = 0
    stay: bool = False

    def encode(self) -> bytes:
        return _FORM.pack(self.stop, self.stay, self.kill_at_s, self.save_request)


def decode(data: bytes) -> Notice:
    stop, stay, kill_at_s, save_request = _FORM.unpack(data)
    return Notice(bool(stop), kill_at_s, save_request, bool(stay))
