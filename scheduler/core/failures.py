"""Of what class a failure is, and which of a gang's was the first: from what the nodes found, by words alone.

A rank that fell because its peer was gone comes after every rank that fell on its own, whenever it fell; so
does one that we killed, unless it had failed before. Among equals the time of death decides.
"""

import re
from typing import Final

from ...spec.failures import FailureClass
from ...spec.peers import PEER_GONE
from ...spec.resources import WHOLE_GPU_MILLI, GangDemand
from ...spec.xids import Blame, xid_of
from .amounts import size_text
from .failure import AFTER_A_PEER, ON_ITS_OWN, SEEN_FAILING, Failure
from .signals import how_it_exited, signal_of
from .stimuli import Exited

_TEXT_CHARS_MAX: Final = 200


def is_before(one: Failure, other: Failure) -> bool:
    """`one` is rather the first failure than `other`."""
    return (one.doubt, one.died_us or 0) < (other.doubt, other.died_us or 0)


def could_be_cause(death: Exited) -> bool:
    """Ranks that ended well, or that we killed while they were fine, are not."""
    return death.exit_code != 0 and (not death.killed_by_us or bool(death.evidence.error_type))


def doubt_of(death: Exited, world_size: int) -> int:
    if world_size > 1 and PEER_GONE.search(_words(death)):
        return AFTER_A_PEER
    seen_only = death.killed_by_us and not death.evidence.recorded
    return SEEN_FAILING if seen_only else ON_ITS_OWN


def class_of(death: Exited, *, trained: bool, before: Failure | None = None) -> FailureClass:
    """`trained`: the job has made progress before, so that what fails it now need not fail it always.
    `before`: what the attempt just before this one failed of."""
    if _is_out_of_memory(death):
        return FailureClass.OUT_OF_MEMORY
    if not trained and (will_recur(death) or _is_again(death, before)):
        return FailureClass.USER_ERROR
    if _is_exception(death):
        return FailureClass.EXCEPTION
    return FailureClass.EXIT_CODE if signal_of(death.exit_code) is None else FailureClass.SIGNAL


def will_recur(death: Exited) -> bool:
    """By its words alone: an error of syntax, an import, the command itself."""
    if death.cause.startswith("no container"):  # that was its node
        return False
    if _is_exception(death):
        return _bare(death.evidence.error_type) in _RECURRING
    if death.exit_code in (_NOT_FOUND, _NOT_EXECUTABLE):
        return True
    return death.exit_code == _BAD_USAGE and bool(_USAGE.search(_words(death)))


def error_text(death: Exited) -> str:
    """One line: the beginning of the error where there is one, else the end of the last line of output."""
    found = death.evidence
    if not _is_exception(death):
        return end_of_line(death.last_line)
    text = ": ".join(part for part in (found.error_type, found.message) if part)
    return text if len(text) <= _TEXT_CHARS_MAX else f"{text[:_TEXT_CHARS_MAX]} ..."


def end_of_line(line: str) -> str:
    """As much of it as a reason has room for; the whole is in the failure's report and in the log."""
    return line if len(line) <= _TEXT_CHARS_MAX else f"... {line[-_TEXT_CHARS_MAX:]}"


def death_text(death: Exited, rank: int, node_name: str) -> str:
    cause = death.cause or xid_text(death)
    how = "failed" if death.killed_by_us else how_it_exited(death.exit_code, cause)
    text = error_text(death)
    return f"rank {rank} on {node_name} {how}" + (f": {text}" if text else "")


def xid_text(death: Exited) -> str:
    """`XID 31 on GPU 0 (MMU fault: ...)`; empty: no XID was told of its GPUs."""
    if not death.xid:
        return ""
    return f"XID {death.xid} on GPU {death.xid_gpu} ({xid_of(death.xid).meaning})"


def is_gpus_fault(death: Exited) -> bool:
    """The driver told of its GPU what no program can do to one."""
    return bool(death.xid) and xid_of(death.xid).blame in (Blame.DEVICE, Blame.LINK)


def hint_of(death: Exited, kind: FailureClass, demand: GangDemand, logs: str) -> str:
    """What a person would do. `logs`: the command that shows the rank's output."""
    if death.xid and kind is not FailureClass.OUT_OF_MEMORY:
        return f"{xid_of(death.xid)}; compute-sanitizer shows the line of an illegal access; see {logs}"
    match kind:
        case FailureClass.OUT_OF_MEMORY:
            return _memory_hint(death, demand)
        case FailureClass.USER_ERROR if not will_recur(death):
            return f"it failed in the same way twice, before its first step: correct it; see {logs}"
        case FailureClass.USER_ERROR:
            return _user_error_hint(death, demand)
        case FailureClass.SIGNAL:
            told = _SIGNAL_HINTS.get(signal_of(death.exit_code) or 0, "")
            return f"{told}; see {logs}" if told else f"see {logs}"
    return f"see {logs}"


# Patterns. What is matched are the words of Python, glibc, shells, torch, gloo and NCCL.

_DEVICE_MEMORY: Final = re.compile(
    r"(CUDA|HIP|XPU|MPS backend|NPU|GPU)( error:)? out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA driver error: out of memory",
    re.IGNORECASE,
)
_HOST_MEMORY: Final = re.compile(
    r"DefaultCPUAllocator: (can't|not enough)|std::bad_alloc|Cannot allocate memory"
    r"|Unable to allocate .* for an array"
)
_RECURRING: Final = frozenset(
    {"SyntaxError", "IndentationError", "TabError", "ImportError", "ModuleNotFoundError"}
)
_USAGE: Final = re.compile(
    r"^\S.*: error: |^usage: |[Ss]yntax error|can't open file|unrecognized (option|argument)|invalid option"
    r"|No such option|Error: (Missing|Invalid value|Got unexpected)",
    re.MULTILINE,
)
_CAPACITY: Final = re.compile(r"total capacity of ([0-9.]+ [KMGT]iB)")
_MODULE: Final = re.compile(r"No module named '([^']+)'")
_FILE: Final = re.compile(r'File "([^"\n]+)", line (\d+)')
_FRAME: Final = re.compile(r'File "([^"\n]+)", line (\d+)(?:, in (\S+))?')
_FROM_OUTSIDE: Final = re.compile(
    r"connect|time[ds]?[ -]?out|unreachable|unavailable|temporar|not known|gaierror|URLError|SSL"
    r"|HTTP Error (429|5\d\d)|\b(429|5\d\d) (Client|Server) Error|Too many"
    r"|stale file|input/output error|remote I/O|no space left|quota|in use|\bbusy\b|locked"
    r"|CUDA|cuDNN|cuBLAS|NCCL|RCCL|NVML|\bHIP\b|\bXPU\b|AcceleratorError|DataLoader worker|KeyboardInterrupt",
    re.IGNORECASE,
)
"""Words of errors that may be gone at the next try: of networks, services, storage, devices."""
_NOT_FOUND, _NOT_EXECUTABLE, _BAD_USAGE = 127, 126, 2
_EXCEPTION_CODES: Final = frozenset({1, -6, 134})
"""With which an interpreter ends that prints a traceback: 1, or an abort while it closes down."""
_SIGNAL_HINTS: Final = {
    4: "the program has instructions that this node's CPU lacks",
    6: "native code gave up; its last lines say why",
    7: "/dev/shm is full, or a mapped file was cut: use fewer loader workers, or make /dev/shm larger",
    8: "native code divided by zero",
    9: "nothing of Paceline sent it: often the kernel, for lack of memory (`dmesg` on the node says so)",
    11: "native code crashed: with PYTHONFAULTHANDLER=1 in environment_variables, the stack is in the log",
    15: "somebody outside asked it to end",
}


def _words(death: Exited) -> str:
    """What it says it died of: its error, else the end of its output."""
    found = death.evidence
    if found.error_type and _is_exception(death):
        return f"{found.error_type}: {found.message}"
    return "\n".join([*found.last_lines.splitlines()[-5:], death.last_line])


def _is_exception(death: Exited) -> bool:
    found = death.evidence
    return bool(found.error_type) and (
        found.recorded or death.killed_by_us or death.exit_code in _EXCEPTION_CODES
    )


def _is_out_of_memory(death: Exited) -> bool:
    if death.cause.startswith("out of memory"):  # the kernel's word
        return True
    if _is_exception(death) and _bare(death.evidence.error_type) in ("OutOfMemoryError", "MemoryError"):
        return True
    words = _words(death)
    return bool(_DEVICE_MEMORY.search(words) or _HOST_MEMORY.search(words))


def _bare(error_type: str) -> str:
    return error_type.rpartition(".")[2]


def _is_again(death: Exited, before: Failure | None) -> bool:
    """The same error in the same line of the program as `before`, and nothing in it speaks of a peer, a
    device or anything else outside. An exit code and a last line are too little to give up for: those of a
    lost file system, or of a service that is down, are the same each time, too."""
    if before is None or not _is_exception(death) or death.xid or death.cause:
        return False
    found = death.evidence
    place = _place(found.traceback)
    if not place or place != _place(before.traceback):
        return False
    if (found.error_type, found.message) != (before.error_type, before.message):
        return False
    errors = "\n".join(line for line in found.traceback.splitlines() if not line[:1].isspace())
    return not (PEER_GONE.search(errors) or _FROM_OUTSIDE.search(errors))


def _place(traceback: str) -> tuple[str, ...]:
    """Of its last frame: file, line and function. Each attempt has a copy of the code, in another folder."""
    frames = _FRAME.findall(traceback)
    return (frames[-1][0].rpartition("/")[2], *frames[-1][1:]) if frames else ()


def _memory_hint(death: Exited, demand: GangDemand) -> str:
    words = _words(death)
    if _DEVICE_MEMORY.search(words) or _bare(death.evidence.error_type) == "OutOfMemoryError":
        if share := demand.per_task.gpu_milli:
            of = f"{share / WHOLE_GPU_MILLI:g} of one (resources.gpus)"
            return f"its share of the GPU's memory is full: lower the batch size or ask for more than {of}"
        capacity = _CAPACITY.search(words)
        than = f"more than {capacity[1]}" if capacity else "more memory"
        return f"the GPU's memory is full: lower the batch size or ask for a GPU with {than}"
    asked = demand.per_task.memory_bytes
    if asked:
        more = f"more than {size_text(asked)} (resources.memory)"
        return f"the node's memory is full: lower the batch size or ask for {more}"
    return "the node's memory is full: lower the batch size, or say in resources.memory what the job needs"


def _user_error_hint(death: Exited, demand: GangDemand) -> str:
    found = death.evidence
    if death.exit_code == _NOT_FOUND and not _is_exception(death):
        return "command not found: correct its name, give its whole path, or install it on the nodes"
    if death.exit_code == _NOT_EXECUTABLE and not _is_exception(death):
        return "not executable: name the program that runs it, as in `python FILE`, or `chmod +x` it"
    environment = (
        f"the environment {demand.environment!r}" if demand.environment else "the nodes' environment"
    )
    if module := _MODULE.search(found.message):
        return f"{module[1]} is not there: install it in {environment}, or name one that has it (environment)"
    if _bare(found.error_type) in ("ImportError", "ModuleNotFoundError"):
        return f"what is installed in {environment} does not go with this import"
    where = _FILE.findall(f"{found.traceback}\n{found.last_lines}")
    if found.error_type and where:
        return f"correct {where[-1][0]}, line {where[-1][1]}"
    return "correct the command and submit again"
