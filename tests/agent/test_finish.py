"""How a rank ends that was forked from a warm interpreter; what a script sees of it is compared with a fresh
one in tests/agent_process/test_fresh_interpreter.py."""

import subprocess
import sys
from pathlib import Path

MAIN = """
import sys
from paceline.agent.finish import Beginning

beginning = Beginning()
sys.path.insert(0, ".")
import user
beginning.finish(3)
print("the interpreter ends it")
sys.exit(4)
"""


def end(folder: Path, user: str) -> tuple[int, str]:
    """Exit code and output of a process that ends after it has imported `user`."""
    (folder / "user.py").write_text(user)
    done = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_files_that_were_left_open_are_written(tmp_path: Path) -> None:
    user = """
held = open("held", "w"); held.write("one")
class Holder: pass
cycle = Holder(); cycle.me = cycle; cycle.file = open("cycle", "w"); cycle.file.write("two")
def later(): return cycle
"""
    assert end(tmp_path, user) == (3, "")
    assert (tmp_path / "held").read_text() == "one"
    assert (tmp_path / "cycle").read_text() == "two"


def test_a_library_that_was_loaded_has_its_own_end(tmp_path: Path) -> None:
    source = tmp_path / "end.c"
    source.write_text(
        "#include <stdio.h>\n"
        '__attribute__((destructor)) static void end(void) { FILE *f = fopen("ended", "w"); fclose(f); }\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "end.so", "end.c"], cwd=tmp_path, check=True)
    code, output = end(tmp_path, "import ctypes; library = ctypes.CDLL('./end.so')")
    assert (code, output) == (4, "the interpreter ends it\n")
    assert (tmp_path / "ended").exists()


def test_pythons_own_modules_do_not_count(tmp_path: Path) -> None:
    assert end(tmp_path, "import _csv, _elementtree, audioop") == (3, "")


def test_a_stream_that_fails_is_left_to_the_interpreter(tmp_path: Path) -> None:
    user = """
import sys
class Broken:
    closed = False
    def flush(self): 1/0
    def write(self, text): pass
sys.stdout = Broken()
"""
    code, output = end(tmp_path, user)
    assert code == 120, "as it is where the interpreter cannot flush"
    assert "ZeroDivisionError" in output


def test_modules_are_cleared_wherever_they_stand_among_the_others(tmp_path: Path) -> None:
    """Also where the script has imported anew what was there, the last of it too."""
    (tmp_path / "other.py").write_text(
        "import weakref\nclass Held:\n    def __del__(self): print('gone')\nheld = Held()\nheld.me = held\n"
    )
    user = """
import sys, importlib
import other
last = [name for name in sys.modules if name.startswith("paceline.")][-1]
module = sys.modules.pop(last)
importlib.import_module(last)
sys.modules.pop("__main__")
"""
    assert end(tmp_path, user) == (3, "gone\n")
