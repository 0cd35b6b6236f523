"""A rank that counts aloud until it is told that it is enough: COUNTED FOLDER PERIOD_S EXIT_CODE.

Its start is a line in FOLDER/starts; from when to when it lived stands in FOLDER/lives/ATTEMPT.RANK
(CLOCK_MONOTONIC, kept up while it lives, so that SIGKILL cannot falsify it). Where two of one rank live at
once, whichever came second says so in FOLDER/twice.
"""

import fcntl
import os
import struct
import sys
import time


def main() -> None:
    folder, period_s, exit_code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    attempt, rank = os.environ["PACELINE_ATTEMPT"], os.environ["PACELINE_TASK"]
    alone = os.open(f"{folder}/alone.{rank}", os.O_RDWR | os.O_CREAT, 0o600)
    began_s = time.monotonic()
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"{folder}/twice", f"attempt {attempt} of rank {rank} began while another lived\n")
    life = os.open(f"{folder}/lives/{attempt}.{rank}", os.O_RDWR | os.O_CREAT, 0o600)
    note(f"{folder}/starts", f"{attempt} {rank} {os.getpid()}\n")
    number = 0
    while not os.path.exists(f"{folder}/enough"):  # noqa: PTH110 - quicker than pathlib
        number += 1
        os.write(1, b"line %d\n" % number)
        os.pwrite(life, struct.pack("<dd", began_s, time.monotonic()), 0)
        time.sleep(period_s)
    os.write(1, b"over\n")
    sys.exit(exit_code)


def note(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, line.encode())
    os.close(file)


if __name__ == "__main__":
    main()
