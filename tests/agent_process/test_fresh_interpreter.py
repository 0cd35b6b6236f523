# ruff: noqa: E501 - one script, one line
"""A script started warm does what a fresh `python` does: same output, same exit code, for each of these."""

import asyncio
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from paceline.agent.preparing import Prepared
from support.processes import PYTHON, key, of_kind, output, run, start_task, supervised

SCRIPTS: dict[str, str] = {
    "argv": "import sys; print(sys.argv, sys.orig_argv[1:])",
    "main": """
import __main__, sys
print(__main__ is sys.modules["__main__"], __name__, __file__, __spec__, __package__, __cached__, __doc__)
print(sorted(vars(__main__)), type(__loader__).__name__, __loader__.path, __builtins__ is sys.modules["builtins"])
""",
    "path": "import sys; print(sys.path, sys.path_hooks and True, sys.prefix, sys.executable)",
    "cwd": "import os, tempfile; print(os.getcwd(), tempfile.gettempdir(), os.environ['PWD'])",
    "environment": """
import os, subprocess
print(sorted((k, v) for k, v in os.environ.items() if k not in ("_", "SHLVL")))
print(sorted(subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()))
""",
    "descriptors": "import os; print(sorted(os.listdir('/proc/self/fd'))); print(os.readlink('/proc/self/fd/0'))",
    "stdio": """
import sys
for f in (sys.stdin, sys.stdout, sys.stderr):
    print(f.name, f.mode, f.encoding, f.errors, f.line_buffering, f.write_through, f.isatty(), f.fileno())
print(type(sys.stdout.buffer).__name__, sys.stdout is sys.__stdout__, repr(sys.stdin.read()))
""",
    "order": """
import os, sys
print("a"); print("b", file=sys.stderr); os.write(1, b"c\\n"); sys.stdout.write("d"); os.write(2, b"e\\n")
""",
    "flags": "import sys; print(sys.flags, sys.dont_write_bytecode, sys.warnoptions, sys._xoptions)",
    "signals": """
import signal
print([(int(s), str(signal.getsignal(s))) for s in sorted(signal.valid_signals()) if s < 32])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
for line in open("/proc/self/status"):
    if line.startswith(("SigBlk", "SigIgn", "SigCgt")): print(line.strip())
""",
    "umask": "import os; mask = os.umask(0); print(oct(mask)); import resource; print(resource.getrlimit(7))",
    "threads": "import os, threading; print(threading.main_thread() is threading.current_thread(), threading.enumerate(),"
    " len(os.listdir('/proc/self/task')))",
    "gc": "import gc; print(gc.isenabled(), gc.get_threshold(), gc.get_debug())",
    "warning": "import warnings; warnings.warn('careful'); warnings.warn('old', DeprecationWarning)",
    "exception": "def f():\n    raise ValueError('no')\nf()",
    "chained": "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise RuntimeError('then') from e",
    "group": "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
    "syntax": "print('never')\ndef broken(:\n",
    "encoding": "# -*- coding: latin-1 -*-\nprint(len('\\xe9'))",
    "import_error": "import no_such_module_anywhere",
    "sibling": "import sibling; print(sibling.VALUE, sibling.__file__)",
    "exit_none": "import sys; sys.exit()",
    "exit_number": "import sys; sys.exit(3)",
    "exit_text": "import sys; sys.exit('some words')",
    "exit_true": "import sys; sys.exit(True)",
    "exit_large": "import sys; sys.exit(259)",
    "exit_negative": "import sys; sys.exit(-1)",
    "exit_object": "raise SystemExit((1, 2))",
    "hard_exit": "import os; print('x'); os._exit(7)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "interrupt_raised": "raise KeyboardInterrupt",
    "segfault": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "atexit": "import atexit; atexit.register(print, 'bye'); print('hi'); 1/0",
    "atexit_error": "import atexit; atexit.register(lambda: 1/0); print('hi')",
    "atexit_exit": "import atexit, sys; atexit.register(lambda: sys.exit(4)); print('hi')",
    "thread_joined": """
import threading, time
threading.Thread(target=lambda: (time.sleep(0.05), print("late"))).start()
print("main is over")
""",
    "thread_error": "import threading\nt = threading.Thread(target=lambda: 1/0, name='T'); t.start(); t.join()",
    "daemon": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start(); print('end')",
    "del_at_exit": "class A:\n    def __del__(self): print('gone')\na = A()",
    "del_in_cycles": """
import sibling
class A:
    def __init__(self, name): self.name, self.me = name, self
    def __del__(self): print("gone", self.name)
one = A("main"); sibling.two = A("sibling"); sibling.more = [A("list")]
def f(): return one
""",
    "del_uses_names": """
WORD = "word"; _private = "private"
class A:
    def __del__(self): print(WORD, _private, len("abc"))
a = A(); holds = lambda: a
""",
    "exit_holds": "import sys\nclass A:\n    def __del__(self): print('gone')\ndef f():\n    a = A(); sys.exit(2)\nf()",
    "finalizer": "import weakref\nclass A: pass\na = A(); weakref.finalize(a, print, 'finalized')",
    "c_stdio": "import ctypes; libc = ctypes.CDLL(None); libc.printf(b'from C')",
    "thread_starts_late": """
import threading, time
def late():
    time.sleep(0.02); threading.Thread(target=lambda: (time.sleep(0.02), print("later"))).start()
threading.Thread(target=late).start()
""",
    "pool_at_exit": """
from concurrent.futures import ThreadPoolExecutor
import time
pool = ThreadPoolExecutor(2)
for word in ("a", "b"): pool.submit(lambda: (time.sleep(0.02), print("done\\n", end="")))
""",
    "children_at_exit": """
import multiprocessing as mp
go = mp.get_context("fork").Event()
def work(): go.wait(); print("child", flush=True)
child = mp.get_context("fork").Process(target=work); child.start(); print("parent", flush=True); go.set()
""",
    "stdout_full": "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('x' * 10)",
    "stdout_replaced": "import sys, io\nclass T(io.StringIO):\n    def flush(self): sys.__stdout__.write('flushed ')\nsys.stdout = T()",
    "hook": "import sys\nsys.excepthook = lambda k, v, t: print('hook', k, v, t.tb_frame.f_code.co_name, t.tb_lineno)\n1/0",
    "closed_stdout": "import os, sys; sys.stdout.close(); sys.exit(5)",
    "recursion": "import sys; print(sys.getrecursionlimit())\ndef f(): f()\ntry: f()\nexcept RecursionError as e: print(e)",
    "pickled": """
import pickle
class A: pass
def f(): pass
print(pickle.loads(pickle.dumps(A)) is A, A.__module__, f.__module__, pickle.dumps(f))
""",
    "spawned": """
import multiprocessing as mp
def double(x): return 2 * x
if __name__ == "__main__":
    for way in ("spawn", "fork", "forkserver"):
        with mp.get_context(way).Pool(2) as pool: print(way, pool.map(double, [1, 2, 3]))
""",
    "asyncio": "import asyncio\nasync def f():\n    await (await asyncio.create_subprocess_exec('true')).wait(); print('ran')\nasyncio.run(f())",
    "logging": "import logging; logging.warning('w'); logging.basicConfig(level='INFO'); logging.info('i')",
    "inspect": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f), inspect.getfile(f))",
}
OTHERS = {
    "module": ("python -m package.tool x", ["-m", "package.tool", "x"], {}),
    "package": ("python3 -m package", ["-m", "package"], {}),
    "module_gone": ("python -m no_such_package_anywhere", ["-m", "no_such_package_anywhere"], {}),
    "module_error": ("python -m package.broken", ["-m", "package.broken"], {}),
    "script_gone": ("python nothing.py", ["nothing.py"], {}),
    "elsewhere": ("python sub/there.py --a 'b c'", ["sub/there.py", "--a", "b c"], {}),
    "dotted": ("python ./sub/there.py", ["./sub/there.py"], {}),
    "linked": ("python link.py", ["link.py"], {}),
    "unbuffered": ("python -u s_stdio.py", ["-u", "s_stdio.py"], {}),
    "buffered": ("python s_stdio.py", ["s_stdio.py"], {"PYTHONUNBUFFERED": ""}),
    "assigned": ("A=1 B='x y' python s_environment.py", ["s_environment.py"], {"A": "1", "B": "x y"}),
    "hash_seed": ("python seeded.py", ["seeded.py"], {"PYTHONHASHSEED": "7"}),
    "optimized": ("python s_flags.py", ["s_flags.py"], {"PYTHONOPTIMIZE": "1"}),
    "time_zone": ("python zone.py", ["zone.py"], {"TZ": "Asia/Tokyo"}),
    "python_path": ("python s_path.py", ["s_path.py"], {"PYTHONPATH": "/tmp/some/where"}),
}


def write_scripts(folder: Path) -> None:
    for name, text in SCRIPTS.items():
        (folder / f"s_{name}.py").write_text(text.lstrip("\n"), encoding="latin-1")
    (folder / "sibling.py").write_text("VALUE = 41")
    (folder / "seeded.py").write_text("print(hash('a'))")
    (folder / "zone.py").write_text("import time; print(time.tzname, time.localtime(0).tm_hour)")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    tool = (
        "import sys, __main__; print(sys.argv, sys.path[0], __name__, __file__, __spec__.name, __package__)"
    )
    (folder / "package" / "tool.py").write_text(tool)
    (folder / "package" / "__main__.py").write_text(tool)
    (folder / "package" / "broken.py").write_text("def f():\n    raise OSError('x')\nf()\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "there.py").write_text(
        "import sys; print(sys.argv, sys.path[0], __file__)\nraise Exception('e')"
    )
    (folder / "link.py").symlink_to("sub/there.py")


def fresh(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """What a new interpreter does in the same surroundings."""
    log = folder / f"fresh-{os.urandom(4).hex()}.log"
    with log.open("ab") as file:
        done = subprocess.run(
            ["python", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return done.returncode, comparable(log.read_text(errors="replace"))


def comparable(text: str) -> str:
    """Without addresses, which differ from run to run."""
    return re.sub(r"0x[0-9a-f]{6,}|(?<=started )\d+", "ADDRESS", text)


async def test_a_warm_script_is_a_fresh_interpreter(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    write_scripts(folder)
    cases: dict[str, tuple[str, list[str], dict[str, str]]] = {
        name: (f"python s_{name}.py a 'b c'", [f"s_{name}.py", "a", "b c"], {}) for name in SCRIPTS
    }
    cases |= OTHERS
    different: list[str] = []
    limit = asyncio.Semaphore(4)
    async with supervised(tmp_path / "state", zygotes_max=8) as supervisor:

        async def check(job: int, name: str) -> None:
            command, arguments, extra = cases[name]
            at = key(job)
            async with limit:
                entries = await run(supervisor, start_task(at, command, folder, environment=extra))
                [begun], [over] = of_kind(entries, "started"), of_kind(entries, "ended")
                assert begun.start_mode.startswith("warm"), (name, begun.start_mode)
                theirs = await asyncio.to_thread(fresh, arguments, folder, environment_of(supervisor, at))
            ours = (over.exit_codes[0], comparable(output(supervisor, at)))
            if ours != theirs:
                different.append(f"--- {name}: ours {ours[0]}\n{ours[1]}--- fresh {theirs[0]}\n{theirs[1]}")

        await asyncio.gather(*(check(job, name) for job, name in enumerate(cases, 1)))
    assert not different, "\n".join(different)


def environment_of(supervisor: Any, at: Any) -> dict[str, str]:
    launch = supervisor._starter._plan(supervisor._tasks[at], Prepared()).document
    return {**launch["environment"], **launch["ranks"][0]["environment"]}


@pytest.mark.parametrize(
    "command", ["python -X dev a.py", "python -c 'print(1)'", f"{PYTHON} -O a.py", "python ."]
)
async def test_what_a_fork_cannot_do_starts_cold_and_says_why(tmp_path: Path, command: str) -> None:
    (tmp_path / "a.py").write_text("print(1)")
    (tmp_path / "__main__.py").write_text("print(1)")
    async with supervised(tmp_path / "state") as supervisor:
        entries = await run(supervisor, start_task(key(1), command, tmp_path))
        [begun], [over] = of_kind(entries, "started"), of_kind(entries, "ended")
        assert begun.start_mode.startswith("cold: "), begun.start_mode
        assert list(over.exit_codes) == [0]
        assert output(supervisor, key(1)) == "1\n"


async def test_a_script_folder_that_shadows_a_preload_starts_cold(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import logging; print(logging.MINE)")
    (tmp_path / "logging.py").write_text("MINE = 5")
    async with supervised(tmp_path / "state") as supervisor:
        entries = await run(supervisor, start_task(key(1), "python a.py", tmp_path))
        assert "logging.py" in of_kind(entries, "started")[0].start_mode
        assert output(supervisor, key(1)) == "5\n"
