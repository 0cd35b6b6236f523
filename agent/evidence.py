"""What a rank died of, from what it left: its own record of the error, and the end of its output.

Looked for only when a rank has failed, and bounded. The record is torchelastic's: `TORCHELASTIC_ERROR_FILE`
of each rank, which warm ranks write by themselves and scripts with torchrun's `@record` too; where there is
none, a traceback at the end of the output will do; where Ray's driver tells there of several workers, the
error of the first that did not merely lose a peer. Light to import: shim and warm ranks use it.
"""

import contextlib
import json
import os
import re
import time
import traceback
from itertools import pairwise
from types import TracebackType
from typing import Any, NamedTuple

from ..spec.peers import PEER_GONE

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
LAST_LINE_CHARS_MAX = 500
MESSAGE_CHARS_MAX = 1000
TRACEBACK_CHARS_MAX = 4000
LINES_CHARS_MAX = 2000
_LINES_MAX = 20
_TRACE_LINE_CHARS_MAX = 1000
_TAIL_BYTES = 16 * 1024
_RECORD_BYTES_MAX = 256 * 1024
_KILLED_AT_END_LINES = 3
"""So few lines may follow the traceback of a rank that was killed: what is older did not end it."""

_HEADERS = ("Traceback (most recent call last):", "Exception Group Traceback (most recent call last):")
_GROUP_BAR = re.compile(r"^ +[|+] ?")
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")  # torch.distributed puts it before each line of a traceback
_ERROR = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_SYNTAX = re.compile(r"(SyntaxError|IndentationError|TabError): (.*)")
_PLACE = re.compile(r'  File ".*", line \d+')

_RAY_ERROR = "ray.train.WorkerGroupError"
_RAY_WORKER = re.compile(r"\[Rank [\d,]+ Error Snippet\]:")  # before each error of Ray Train's workers
_RAY_CUT = "... (Output truncated."  # in place of an error's middle; what follows begins within a line
_RAY_DEAD = "The actor is dead because "
_RAY_PROCESS_DIED = f"{_RAY_DEAD}its worker process has died."
_RAY_GUESSES = " Some common causes include"


class Trace(NamedTuple):
    """A traceback that was found in text."""

    error_type: str
    message: str
    text: str
    lines_after: int


def error_path(folder: str, rank: int) -> str:
    """Where the rank records the error that ends it."""
    return f"{folder}/rank-{rank}.error"


def began_path(folder: str, rank: int) -> str:
    """Made by the rank in its container, first thing."""
    return f"{folder}/rank-{rank}.began"


def record_error(
    path: str, kind: type[BaseException], value: BaseException, trace: TracebackType | None
) -> None:
    """In the rank: what `@record` would write. What stands there already is nearer to the cause."""
    lines = "".join(traceback.format_exception(kind, value, trace)).splitlines()
    text = "\n".join(line[:_TRACE_LINE_CHARS_MAX] for line in lines)
    info = {"py_callstack": text[-_RECORD_BYTES_MAX // 8 :], "timestamp": str(int(time.time()))}
    message = {"message": f"{kind.__name__}: {value}"[:MESSAGE_CHARS_MAX], "extraInfo": info}
    with contextlib.suppress(OSError):  # a full disk: the traceback is in the log
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a descriptor
            json.dump({"message": message}, file)


def what_is_left(log: str, error_file: str, *, killed_by_us: bool) -> tuple[str, dict[str, Any]]:
    """The end of the last line of output that is not empty, and the fields of `Evidence` in the journal; none
    when there is nothing. Of a rank that we killed, only what it had failed of before."""
    text, written_at = _read_tail(log)
    lines = _with_text(text)
    last_line = lines[-1][-LAST_LINE_CHARS_MAX:] if lines else ""
    return last_line, _evidence(text, written_at, lines, _recorded(error_file), killed_by_us)


def _evidence(
    text: str, written_at: float, lines: list[str], recorded: tuple[Trace, float] | None, killed_by_us: bool
) -> dict[str, Any]:
    trace, at = recorded or (find_traceback(text), written_at)
    if killed_by_us and (trace is None or trace.lines_after > _KILLED_AT_END_LINES):
        return {}
    fields: dict[str, Any] = {"last_lines": _end_of("\n".join(lines[-_LINES_MAX:]), LINES_CHARS_MAX)}
    if trace is not None:
        fields["error_type"] = trace.error_type
        fields["message"] = trace.message[:MESSAGE_CHARS_MAX]
        fields["traceback"] = _end_of(trace.text, TRACEBACK_CHARS_MAX)
        fields["at_monotonic_s"] = at
    if recorded is not None:
        fields["recorded"] = True
    return {name: value for name, value in fields.items() if value}


def find_traceback(text: str) -> Trace | None:
    """The last one in it: of an exception that the interpreter printed, or of a script that it could not
    compile. Where that is Ray's of its workers, the first that is not of a peer's end."""
    lines = [_RANK_PREFIX.sub("", line) for line in text.splitlines()]
    if "+ Exception Group Traceback" in text:
        lines = [_GROUP_BAR.sub("", line) for line in lines]
    heads = [at for at, line in enumerate(lines) if line.startswith(_HEADERS)]
    if workers := _of_rays_workers(lines, heads):
        own = (each for each in workers if not PEER_GONE.search(f"{each.error_type}: {each.message}"))
        return next(own, workers[0])
    if heads:
        return _last_trace(lines, heads)
    for end in range(len(lines) - 1, 0, -1):
        match = _SYNTAX.fullmatch(lines[end].rstrip())
        if match:
            begin = next((at for at in range(end - 1, max(-1, end - 5), -1) if _PLACE.match(lines[at])), -1)
            return _trace(lines, begin, end, match[1], match[2]) if begin >= 0 else None
    return None


def _last_trace(lines: list[str], heads: list[int]) -> Trace | None:
    for end in range(heads[-1] + 1, len(lines)):
        line = lines[end]
        if line and not line[0].isspace():
            match = _ERROR.fullmatch(line.rstrip())
            return _trace(lines, _first_of_chain(lines, heads), end, match[1], match[2]) if match else None
    return None


def _of_rays_workers(lines: list[str], heads: list[int]) -> list[Trace]:
    """What its driver ended of, worker by worker; none where it went on and failed of something else."""
    group = max((at for at, line in enumerate(lines) if line.startswith(f"{_RAY_ERROR}: ")), default=-1)
    begins = [at for at in range(group + 1, len(lines)) if _RAY_WORKER.fullmatch(lines[at])]
    later = [at for at in heads if begins and at > begins[-1]]
    if later and _first_of_chain(lines, heads) > later[0]:
        return []
    return [_of_rays_worker(lines[begin:end]) for begin, end in pairwise([*begins, len(lines)])]


def _of_rays_worker(lines: list[str]) -> Trace:
    """Of one of them: its traceback, whose middle Ray leaves out where it is long, or how it died."""
    cut = next((at for at, line in enumerate(lines) if line.startswith(_RAY_CUT)), 0)
    whole = lines[:cut] + lines[cut + 2 :] if cut else lines
    heads = [at for at, line in enumerate(whole) if line.startswith(_HEADERS)]
    trace = _last_trace(whole, heads) if heads else None
    if trace is not None:
        return trace._replace(text=f"{lines[0]}\n{trace.text}")
    said = next(
        (at for at, line in enumerate(lines) if line.startswith(_RAY_DEAD)), min(cut + 1, len(lines) - 1)
    )
    message = lines[said].partition(_RAY_GUESSES)[0]
    if message.startswith(_RAY_PROCESS_DIED):
        message = f"a worker was killed by a signal, or ended without a word. {message}"
    return _trace(lines, 0, said, _RAY_ERROR, message)


def _first_of_chain(lines: list[str], heads: list[int]) -> int:
    """Where the exception begins that led to the last one."""
    first = heads[-1]
    for before in reversed(heads[:-1]):
        if not any(line in _CHAINED or line.startswith(_RAY_CUT) for line in lines[before:first]):
            break
        first = before
    return first


def _trace(lines: list[str], begin: int, end: int, error_type: str, message: str | None) -> Trace:
    after = sum(1 for line in lines[end + 1 :] if line.strip())
    text = "\n".join(line[:_TRACE_LINE_CHARS_MAX] for line in lines[begin : end + 1])
    return Trace(error_type, message or "", text, after)


def _recorded(path: str) -> tuple[Trace, float] | None:
    """What the rank recorded, and when on the monotonic clock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        data, at = os.read(fd, _RECORD_BYTES_MAX), _written_at(fd)
    except OSError:  # a folder: the job's own code made it
        return None
    finally:
        os.close(fd)
    try:
        trace = _of_record(json.loads(data))
    except (ValueError, RecursionError):  # cut short by the rank's end
        return None
    return None if trace is None else (trace, at)


def _of_record(record: Any) -> Trace | None:
    said = record.get("message") if isinstance(record, dict) else None
    info = said.get("extraInfo") if isinstance(said, dict) else None
    message = said.get("message") if isinstance(said, dict) else said
    stack = info.get("py_callstack") if isinstance(info, dict) else None
    message, stack = (text if isinstance(text, str) else "" for text in (message, stack))
    found = find_traceback(stack)
    if found is not None:
        return found._replace(lines_after=0)
    kind, _, text = message.partition(": ")
    return Trace(kind, text, stack, 0) if _ERROR.fullmatch(kind) else None


def _read_tail(path: str) -> tuple[str, float]:
    """The end of the file as text, and when it was last written, on the monotonic clock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "", 0.0
    try:
        size, at = os.fstat(fd).st_size, _written_at(fd)
        data = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES)) if size else b""
    finally:
        os.close(fd)
    text = data.replace(b"\0", b"").decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n"), at


def _written_at(fd: int) -> float:
    """File systems go by the wall clock."""
    return time.monotonic() - max(0.0, time.time() - os.fstat(fd).st_mtime)


def _with_text(text: str) -> list[str]:
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def _end_of(text: str, chars_max: int) -> str:
    """Its end, from the beginning of a line on where it is cut."""
    if len(text) <= chars_max:
        return text
    cut = text[-chars_max:]
    return cut[cut.find("\n") + 1 :]
