"""A rank: becomes what its command says, and nothing of us can be told from inside.

A program is exec'd. A Python script runs in this very process, forked from one that has imported torch,
exactly as `python script.py args` would run it: argv, `__main__`, sys.path, environment, stdio, seeds,
signals, exit code, traceback. It ends as the interpreter does (finish.py). Standard library only.
"""

import builtins
import ctypes
import importlib.machinery
import io
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from . import kernel
from .evidence import ERROR_FILE, record_error
from .finish import Beginning
from .ranks import Rank

_BLAS_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


class Settings:
    """What a rank must know of the interpreter as it was before we used it; made in the zygote."""

    def __init__(self, path: list[str]) -> None:
        self.path = path
        self.set_blas_threads = _find_blas_setters()
        self.beginning = Beginning()


def rehearse(settings: Settings, memory: kernel.InitialMemory) -> None:
    """In a process that will be a rank: take over as for a script, which the rank's own will do anew. What it
    writes to is copied by now, and not while the rank is waited for."""
    script = {"kind": "script", "target": "/", "args": [], "unbuffered": True}
    launch = {"argv": ["paceline: rank forked ahead"], "executable": "pace-spare", "python": script}
    _take_over(Rank(launch, 0, dict(os.environ), memory), settings)


def become_rank(rank: Rank, settings: Settings) -> None:
    """Does not return when the script has come to its end; raises what it raised, or returns, where the
    interpreter is to do the rest."""
    if rank.launch["prepare"]:
        _prepare(rank)
    if rank.launch["mode"] == "exec":
        _exec(rank)
    python = rank.launch["python"]
    _take_over(rank, settings)
    try:
        if python["kind"] == "module":
            _run_module(python["target"])
        else:
            _run_script(python["target"])
        settings.beginning.finish(0)
    except SystemExit as end:
        if end.code is None or type(end.code) is int:
            code = end.code or 0
            end.__traceback__ = None  # its frames hold what the script has made
            settings.beginning.finish(code)
        raise
    except BaseException:
        error_file = os.environ.get(ERROR_FILE) or rank.environment[ERROR_FILE]  # of a later attempt's folder
        sys.excepthook = _WithoutOurFrames(sys.excepthook, error_file)
        raise


def _prepare(rank: Rank) -> None:
    """What the launcher runs before the command; where that fails, the rank has failed."""
    try:
        code = subprocess.call(rank.launch["prepare"], env=rank.environment)
    except OSError as error:
        os.write(2, f"paceline: {rank.launch['prepare'][0]}: {error.strerror}\n".encode("utf-8", "replace"))
        code = 126
    if code:
        os._exit(code if code > 0 else 128 - code)


def _exec(rank: Rank) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; what it starts must not
        signal.signal(number, signal.SIG_DFL)
    argv = rank.launch["argv"]
    try:
        os.execve(rank.launch["executable"], argv, rank.environment)
    except OSError as error:
        os.write(2, f"paceline: {argv[0]}: {error.strerror}\n".encode("utf-8", "replace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


# -- a fresh interpreter ------------------------------------------------------------


def _take_over(rank: Rank, settings: Settings) -> None:
    launch, python = rank.launch, rank.launch["python"]
    os.environ.clear()
    os.environ.update(rank.environment)
    time.tzset()
    rank.memory.set_arguments(launch["argv"])
    kernel.set_name(os.path.basename(launch["executable"]))  # noqa: PTH119
    sys.executable = launch["executable"]
    sys.orig_argv = list(launch["argv"])
    sys.argv = ["-m" if python["kind"] == "module" else python["target"], *python["args"]]
    sys.path[:] = [_first_path(python), *settings.path]
    sys.modules["__main__"] = _fresh_main()
    if not (python["unbuffered"] or rank.environment.get("PYTHONUNBUFFERED")):
        _buffer_stdio()
    _settle_libraries(rank.environment, settings)


def _first_path(python: dict[str, Any]) -> str:
    if python["kind"] == "module":
        return os.getcwd()  # noqa: PTH109
    target: str = python["target"]
    return os.path.dirname(os.path.realpath(target))  # noqa: PTH120


def _fresh_main() -> ModuleType:
    module = ModuleType("__main__")
    module.__dict__.update(__annotations__={}, __builtins__=builtins)
    return module


def _buffer_stdio() -> None:
    """The zygote was started unbuffered, as ranks are unless the user says otherwise."""
    reader = io.BufferedReader(_raw(0, "r", "<stdin>"))
    sys.stdin = sys.__stdin__ = _text(reader, sys.stdin, "r")  # type: ignore[misc]
    writer = io.BufferedWriter(_raw(1, "w", "<stdout>"))
    sys.stdout = sys.__stdout__ = _text(writer, sys.stdout, "w")  # type: ignore[misc]
    errors = io.BufferedWriter(_raw(2, "w", "<stderr>"))
    sys.stderr = sys.__stderr__ = _text(errors, sys.stderr, "w", line_buffering=True)  # type: ignore[misc]


def _raw(fd: int, mode: str, name: str) -> io.FileIO:
    raw = io.FileIO(fd, mode, closefd=False)
    raw.name = name
    return raw


def _text(buffer: Any, old: Any, mode: str, *, line_buffering: bool = False) -> io.TextIOWrapper:
    text = io.TextIOWrapper(buffer, old.encoding, old.errors, newline="\n", line_buffering=line_buffering)
    text.mode = mode  # type: ignore[misc]
    return text


def _settle_libraries(environment: dict[str, str], settings: Settings) -> None:
    """What modules read from their surroundings, or drew at random, when the zygote imported them."""
    modules: dict[str, Any] = sys.modules  # a copy counts a reference to each, and so copies its page
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "torch" in modules:
        modules["torch"].default_generator.seed()  # drawn from the system when torch is imported
    if "tempfile" in modules:
        modules["tempfile"].tempdir = None
    if "multiprocessing.process" in modules:
        process = modules["multiprocessing.process"]
        process.ORIGINAL_DIR = os.getcwd()  # noqa: PTH109
        process.current_process()._config["authkey"] = process.AuthenticationString(os.urandom(32))
    threads = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if threads.isdigit() and int(threads) > 0:
        if "torch" in modules:
            modules["torch"].set_num_threads(int(threads))
        for set_threads in settings.set_blas_threads:
            set_threads(int(threads))


def _find_blas_setters() -> list[Callable[[int], None]]:
    """OpenBLAS reads OMP_NUM_THREADS when it is loaded; later it must be told."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        paths = {line.split(None, 5)[5].rstrip("\n") for line in file if "openblas" in line}
    found: list[Callable[[int], None]] = []
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        found += [getattr(library, name) for name in _BLAS_SETTERS if hasattr(library, name)][:1]
    return found


# -- the script ------------------------------------------------------------


def _run_module(name: str) -> None:
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _run_script(target: str) -> None:
    path = _absolute(target)
    namespace = sys.modules["__main__"].__dict__
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    namespace.update(__file__=path, __cached__=None, __loader__=loader)
    exec(compile(_read_script(path), path, "exec", dont_inherit=True), namespace)


def _absolute(target: str) -> str:
    if os.path.isabs(target):  # noqa: PTH117
        return target
    return os.getcwd() + "/" + target  # noqa: PTH109 - as the interpreter does it


def _read_script(path: str) -> bytes:
    try:
        with io.open_code(path) as file:
            return file.read()
    except OSError as error:
        text = f"{sys.orig_argv[0]}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n"
    sys.stderr.write(text)
    raise SystemExit(2)


_OURS: tuple[CodeType, ...] = (_run_module.__code__, _run_script.__code__)


class _WithoutOurFrames:
    """The exception hook that was there, given a traceback that begins where the script does; the error is
    recorded first, since what the hook and the interpreter's end do may take long."""

    def __init__(self, hook: Callable[..., Any], error_file: str) -> None:
        self._hook = hook
        self._error_file = error_file

    def __call__(self, kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        at = trace
        while at is not None and at.tb_frame.f_code not in _OURS:
            at = at.tb_next
        shown = at.tb_next if at is not None else trace
        record_error(self._error_file, kind, value, shown)
        self._hook(kind, value.with_traceback(shown), shown)
