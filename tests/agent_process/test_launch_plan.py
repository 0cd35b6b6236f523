"""What a command becomes: warm only where a fork can do exactly the same, else cold with a reason."""

import sys
from pathlib import Path
from typing import Any

import pytest
from paceline.agent import kernel
from paceline.agent.journal import Journal, read_lines
from paceline.agent.launch import (
    Refusal,
    base_environment,
    is_sensitive,
    make_launch,
    patience_for,
    shadowing,
)
from paceline.agent.messages import Invalid, checked
from paceline.agent.stillness import Patience
from support.processes import PYTHON, key, start_task

BASE = {"PATH": "/usr/bin:/bin", "HOME": "/root"}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    return tmp_path


WARM = [
    ("python a.py", "script", "a.py", []),
    ("python3 a.py --lr 0.1 'x y' \"z\"", "script", "a.py", ["--lr", "0.1", "x y", "z"]),
    ("python \\\n  a.py \\\n  --lr 1\n", "script", "a.py", ["--lr", "1"]),
    ("python -u a.py", "script", "a.py", []),
    ("python -m pkg.mod -x", "module", "pkg.mod", ["-x"]),
    ("A=1 B='2 3' python a.py", "script", "a.py", []),
    (f"{PYTHON} a.py '$HOME' '*'", "script", "a.py", ["$HOME", "*"]),
    ("python a.py not-there.yaml", "script", "a.py", ["not-there.yaml"]),
]


@pytest.mark.parametrize(("command", "kind", "target", "args"), WARM)
def test_plain_python_commands_are_warm(
    code: Path, command: str, kind: str, target: str, args: list[str]
) -> None:
    launch = make_launch(start_task(key(1), command, code), code, PYTHON, BASE, {}, warm=True)
    assert launch.document["start_mode"] == "warm"
    python = launch.document["python"]
    assert (python["kind"], python["target"], python["args"]) == (kind, target, args)


COLD = [
    ("python a.py > out", True, "shell"),
    ("python a.py $HOME", True, "shell"),
    ('python a.py "$HOME"', True, "shell"),
    ("python a.py *.txt", True, "shell"),
    ("cd sub && python a.py", True, "shell"),
    ("export A=1\npython a.py", True, "shell"),
    ("python 'a.py", True, "shell"),
    ("nosuchprogram x", True, "shell"),
    ("exit 3", True, "shell"),
    ("A=1", True, "shell"),
    ("python -O a.py", False, "option -O"),
    ("python -", False, "option -"),
    ("python", False, "without a script"),
    ("python .", False, "not a .py file"),
    ("/bin/sleep 1", False, "not a script"),
    ("./run x", False, "not a script"),
    ("sleep 1", False, "not a script"),
]


@pytest.mark.parametrize(("command", "shell", "why"), COLD)
def test_everything_else_is_cold_and_says_why(code: Path, command: str, shell: bool, why: str) -> None:
    document = make_launch(start_task(key(1), command, code), code, PYTHON, BASE, {}, warm=True).document
    assert document["mode"] == "exec"
    assert document["shell"] is shell
    assert document["start_mode"].startswith("cold: ") and why in document["start_mode"]
    assert Path(document["executable"]).is_absolute()


def test_environment_of_ranks(code: Path) -> None:
    base = base_environment({**BASE, "PACELINE_TOKEN": "secret", "A": "base", "B": "base"})
    request = start_task(key(7, 3, 1), "A=inline python a.py", code, processes=2, environment={"B": "job"})
    document = make_launch(request, code / "tasks" / "7.3.1", PYTHON, base, {}, warm=True).document
    environment = document["environment"]
    assert environment["A"] == "inline"
    assert environment["B"] == "job"
    assert "PACELINE_TOKEN" not in environment
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert environment["PACELINE_MARK"].startswith("7.3.1@")
    assert len(environment["PACELINE_MARK"]) <= kernel.MARK_BYTES_MAX
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    folder = code / "tasks" / "7.3.1"
    assert [rank["environment"] for rank in document["ranks"]] == [
        {"TORCHELASTIC_ERROR_FILE": f"{folder}/rank-{rank['rank']}.error"} for rank in document["ranks"]
    ]
    request.gpu_indices.extend([2, 5])
    environment = make_launch(request, code, PYTHON, base, {}, warm=True).document["environment"]
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["CUDA_DEVICE_ORDER"]) == ("2,5", "PCI_BUS_ID")
    assert not any(name.startswith("TORCH_NCCL_") for name in environment), "no gang"
    assert "PACELINE_GPU_SHARE" not in environment
    request.resources.gpu_milli = 470
    del request.gpu_indices[1:]
    environment = make_launch(request, code, PYTHON, base, {}, warm=True).document["environment"]
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["PACELINE_GPU_SHARE"]) == ("2", "0.47")


SLICES = {10700: "MIG-a", 10800: "MIG-b", 0: "GPU-0"}


def test_each_rank_sees_its_own_slice_alone(code: Path) -> None:
    request = start_task(key(7), "python a.py", code, processes=3, gpu_indices=[10800, 10700])
    document = make_launch(request, code, PYTHON, BASE, SLICES, warm=True).document
    assert document["environment"]["CUDA_VISIBLE_DEVICES"] == "MIG-b,MIG-a"
    seen = [rank["environment"]["CUDA_VISIBLE_DEVICES"] for rank in document["ranks"]]
    assert seen == ["MIG-b", "MIG-a", "MIG-b"], "ranks without one share the others'"
    alone = start_task(key(7), "python a.py", code, gpu_indices=[10700])
    document = make_launch(alone, code, PYTHON, BASE, SLICES, warm=True).document
    assert document["environment"]["CUDA_VISIBLE_DEVICES"] == "MIG-a"
    assert "CUDA_VISIBLE_DEVICES" not in document["ranks"][0]["environment"]


def test_a_slice_that_is_gone_refuses_the_start_for_now(code: Path) -> None:
    request = start_task(key(7), "python a.py", code, gpu_indices=[10701])
    with pytest.raises(Refusal, match="the MIG slice 0/7/1 is no longer on this node") as refused:
        make_launch(request, code, PYTHON, BASE, SLICES, warm=True)
    assert refused.value.transient


@pytest.mark.parametrize(
    ("keys", "said", "told"),
    [
        ('"backend", "per_process_memory_fraction"', "", "per_process_memory_fraction:0.25"),
        ('"backend"', "", None),
        ('"per_process_memory_fraction"', "PYTORCH_CUDA_ALLOC_CONF", None),
        ('"per_process_memory_fraction"', "PYTORCH_ALLOC_CONF", "expandable_segments:True"),
    ],
)
def test_torch_is_told_of_a_share_if_it_understands_and_nobody_else_has(
    code: Path, tmp_path: Path, keys: str, said: str, told: str | None
) -> None:
    interpreter = tmp_path / "bin" / "python"
    header = tmp_path / "lib/python3.11/site-packages/torch/include/c10/cuda/CUDAAllocatorConfig.h"
    header.parent.mkdir(parents=True)
    header.write_text(keys)
    request = start_task(key(7, 3), "true", code, processes=2, gpu_indices=[0])
    request.resources.gpu_milli = 500
    if said:
        request.environment[said] = "expandable_segments:True"
    environment = make_launch(request, code, str(interpreter), BASE, {}, warm=True).document["environment"]
    assert environment.get("PYTORCH_ALLOC_CONF") == told


@pytest.mark.parametrize(
    ("gpus", "names", "old_too"),
    [
        ([], "", False),
        ([0], '"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"', False),
        ([0], '"TORCH_NCCL_TRACE_BUFFER_SIZE"', True),
        ([0], "", True),
    ],
)
def test_a_gang_has_the_flight_recorder_unless_the_user_says_otherwise(
    code: Path, tmp_path: Path, gpus: list[int], names: str, old_too: bool
) -> None:
    """By the names that the interpreter's torch has for it, as its header says: a newer one warns of those of
    old. Where there is no NCCL, the new ones are enough."""
    interpreter = tmp_path / "bin" / "python"
    place = "torch/include/torch/csrc/distributed/c10d/FlightRecorder.hpp"
    header = tmp_path / "lib/python3.11/site-packages" / place
    header.parent.mkdir(parents=True)
    header.write_text(names)
    request = start_task(key(7, 3), "true", code, launcher="pytorch", master_port=29500, gpu_indices=gpus)

    def environment() -> dict[str, str]:
        document = make_launch(request, code, str(interpreter), BASE, {}, warm=True).document
        told: dict[str, str] = document["environment"]
        return told

    assert environment()["TORCH_FR_BUFFER_SIZE"] == "2000"
    assert environment()["TORCH_FR_DUMP_TEMP_FILE"] == f"{code}/traces/3/collectives-"
    old = {name: environment().get(name) for name in OLD_NAMES}
    assert old == (
        dict(zip(OLD_NAMES, ("2000", f"{code}/traces/3/collectives-"), strict=True))
        if old_too
        else dict.fromkeys(OLD_NAMES)
    )
    request.environment["TORCH_NCCL_TRACE_BUFFER_SIZE"] = "0"
    assert environment()["TORCH_NCCL_TRACE_BUFFER_SIZE"] == environment()["TORCH_FR_BUFFER_SIZE"] == "0"
    request.environment["TORCH_FR_BUFFER_SIZE"] = "7"
    assert environment()["TORCH_FR_BUFFER_SIZE"] == "7"


@pytest.mark.parametrize("gpus", [[], [0]])
def test_the_attempts_of_a_gang_start_from_one_zygote(code: Path, tmp_path: Path, gpus: list[int]) -> None:
    """Nothing that is told of an attempt alone may ask for a zygote that was started with it: each would
    import torch anew."""
    plans = [
        make_launch(
            start_task(
                key(7, n), "python a.py", code, launcher="pytorch", master_port=2950 + n, gpu_indices=gpus
            ),
            tmp_path / str(n),
            PYTHON,
            BASE,
            {},
            warm=True,
        )
        for n in (1, 2)
    ]
    assert plans[0].warm and plans[0].warm_key == plans[1].warm_key


OLD_NAMES = ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


@pytest.mark.parametrize(
    ("fields", "fixed_s", "idle_s", "busy_s"),
    [
        ({}, 0.0, 300.0, 1800.0),
        ({"earlier_hangs": 2}, 0.0, 1200.0, 7200.0),
        ({"hang_timeout_s": 60.0, "earlier_hangs": 1}, 60.0, 600.0, 3600.0),
        ({"hang_timeout_s": -1.0}, -1.0, 300.0, 1800.0),
    ],
)
def test_patience_doubles_with_each_hang(
    code: Path, fields: dict[str, Any], fixed_s: float, idle_s: float, busy_s: float
) -> None:
    found = patience_for(start_task(key(1), "x", code, **fields), Patience())
    assert found == Patience(fixed_s, idle_s, busy_s)


@pytest.mark.parametrize(
    ("name", "sensitive"),
    [
        ("PYTHONHASHSEED", True),
        ("PYTHONUNBUFFERED", False),
        ("LD_LIBRARY_PATH", True),
        ("OMP_NUM_THREADS", False),
        ("OMP_PROC_BIND", True),
        ("MALLOC_ARENA_MAX", True),
        ("TORCH_LOGS", True),
        ("TORCH_NCCL_ASYNC_ERROR_HANDLING", False),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("RANK", False),
        ("MY_PYTHON", False),
    ],
)
def test_what_needs_a_zygote_of_its_own(name: str, sensitive: bool) -> None:
    assert is_sensitive(name) is sensitive


def test_shadowing_names_the_file(code: Path) -> None:
    loaded = frozenset({"numpy", "logging"})
    assert shadowing(str(code), loaded) == ""
    (code / "numpy").mkdir()
    assert shadowing(str(code), loaded) == "", "a folder without __init__.py loses to an installed package"
    (code / "numpy" / "__init__.py").write_text("")
    assert shadowing(str(code), loaded) == "numpy"


def test_a_journal_cut_short_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(str(path))
    journal.append("started", {"pids": [1]})
    journal.append("exited", {"exit_code": 1})
    journal.flush()
    journal.close()
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(str(path))
        assert again.append("ended", {}) == 2
        again.flush()
        again.close()
        with path.open("rb") as file:
            assert [(entry["seq"], entry["kind"]) for _, entry in read_lines(file.fileno(), 0)] == [
                (1, "started"),
                (2, "ended"),
            ]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"op": 1}',
        b'{"op": "fly"}',
        b'{"op": "metrics", "rank": "0"}',
        b'{"op": "metrics", "rank": true}',
        b'{"op": "metrics", "values": {"a": "b"}}',
        b'{"op": "metrics", "step": 9223372036854775808}',
        b'{"op": "checkpoint", "removed_steps": [1.5]}',
        b'{"op": "restored", "rejected": ["a", 1]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_bad_requests_are_refused(line: bytes) -> None:
    with pytest.raises(Invalid):
        checked(line)


def test_good_requests_keep_known_fields_in_the_wire_form() -> None:
    op, fields = checked(
        b'{"op": "metrics", "rank": 1, "step": 5, "values": {"a": NaN, "b": 1e999, "c": 2}, "x": 1}'
    )
    assert op == "metrics"
    assert fields == {"rank": 1, "step": 5, "values": {"a": "NaN", "b": "Infinity", "c": 2.0}}
    assert checked(b'{"op": "restored", "path": "\\ud800"}')[1] == {"path": "?"}
