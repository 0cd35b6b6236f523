"""Ranks forked from torch: gangs meet, workers fork and spawn, threads and seeds are right."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from paceline.agent.launch import PRELOAD
from support.processes import ended, key, of_kind, output, start_task, supervised, until

DDP = """
import os, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.Adam(model.parameters())
model(torch.full((2, 4), float(dist.get_rank()))).sum().backward()
optimizer.step()
total = torch.ones(1); dist.all_reduce(total)
print("sum", total.item(), "rank", dist.get_rank(), sum(p.sum().item() for p in model.parameters()))
dist.destroy_process_group()
"""

LEAVES_AT_ONCE = "import os, sys; sys.stdout.flush(); os._exit(0)"
"""A plain `python`, whose end torch may abort: gloo's threads still hold tensors (pytorch/pytorch#179291)."""

SURROUNDINGS = """
import ctypes, glob, os, random, json
import numpy, torch
from torch.utils.data import DataLoader, TensorDataset

def double(x): return 2 * x

if __name__ == "__main__":
    import torch.multiprocessing as mp
    a = numpy.random.rand(700, 700); a @ a
    blas = ctypes.CDLL(glob.glob(numpy.__path__[0] + ".libs/*openblas*")[0])
    data = TensorDataset(torch.arange(8.))
    said = {
        "tasks": len(os.listdir("/proc/self/task")),
        "blas_threads": blas.scipy_openblas_get_num_threads64_(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "cuda": torch.cuda.is_available(),
        "loaded": sum(float(batch[0].sum()) for batch in DataLoader(data, batch_size=2, num_workers=2)),
        "pool": mp.get_context("fork").Pool(2).map(double, [1, 2]),
    }
    drawn = [float(numpy.random.rand()), random.random(), numpy.random.default_rng().random(),
        torch.rand(1, dtype=torch.double).item(), torch.initial_seed()]
    print(json.dumps([said, drawn]))
"""

ENVIRONMENT = "import os, json; print(json.dumps(dict(os.environ)))"


async def test_gangs_meet_warm_restart_anew_and_see_what_torchrun_shows(tmp_path: Path) -> None:
    """Two tasks of one rank, one task of two ranks, a cold rank beside a warm store; then surroundings."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "ddp.py").write_text(DDP)
    (code / "cold.py").write_text(DDP + LEAVES_AT_ONCE)
    (code / "surroundings.py").write_text(SURROUNDINGS)
    (code / "environment.py").write_text(ENVIRONMENT)
    async with supervised(tmp_path / "state", preload=PRELOAD, rendezvous_ports=3) as supervisor:
        await until(lambda: supervisor.warm_pool() == "ready", "torch is imported", 100)

        def gang(job: int, attempt: int, command: str, tasks: int, processes: int):
            port = supervisor.rendezvous_ports()[0]
            return [
                start_task(
                    key(job, attempt, task),
                    command,
                    code,
                    processes=processes,
                    world_size=tasks * processes,
                    first_rank=task * processes,
                    node_rank=task,
                    node_count=tasks,
                    launcher="pytorch",
                    hosts_rendezvous=task == 0,
                    master_address="127.0.0.1",
                    master_port=port,
                )
                for task in range(tasks)
            ]

        async def ride(requests) -> list[str]:
            await asyncio.gather(*(supervisor.start(request) for request in requests))
            said = []
            for request in requests:
                at = key(request.task.job, request.task.attempt, request.task.task)
                entries = await ended(supervisor, at, 60)
                for rank in supervisor.log_files(at):
                    said.append(output(supervisor, at, rank))
                assert set(of_kind(entries, "ended")[0].exit_codes) == {0}, said
                assert not any("terminate" in text for text in said), said
            return said

        for attempt, (tasks, processes) in enumerate([(2, 1), (1, 2), (2, 1)], 1):
            said = await ride(gang(1, attempt, "python ddp.py", tasks, processes))
            assert [text.split()[:4] for text in said] == [
                ["sum", "2.0", "rank", str(rank)] for rank in range(2)
            ]
            assert said[0].split()[4] == said[1].split()[4]
            begun = of_kind(supervisor.entries(key(1, attempt), 0, 10), "started")[0]
            assert begun.start_mode == "warm"
        said = await ride(gang(2, 1, "python cold.py && true", 2, 1))
        assert all(text.startswith("sum 2.0") for text in said)

        [text] = await ride([start_task(key(3), "python surroundings.py", code)])
        [limited] = await ride(
            [start_task(key(4), "python surroundings.py", code, environment={"OMP_NUM_THREADS": "1"})]
        )
        check_surroundings(code, text, limited)

        [mine] = await ride(gang(5, 1, "python environment.py", 1, 1))
        check_environment(code, json.loads(mine))


def check_surroundings(code: Path, text: str, limited: str) -> None:
    (ours, drawn), (ours_limited, drawn_again) = json.loads(text), json.loads(limited)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "surroundings.py"]
    fresh = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=True)
    assert ours == json.loads(fresh.stdout)[0]
    assert ours_limited["threads"] == 1
    assert ours_limited["blas_threads"] == 1
    assert not set(drawn) & set(drawn_again), "two ranks drew the same random numbers"


def check_environment(code: Path, mine: dict[str, str]) -> None:
    """Every variable of torchrun's, with its value where it is not an address or an id."""
    out = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=1",
            "environment.py",
        ],
        cwd=code,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    theirs = {k: v for k, v in json.loads(out).items() if os.environ.get(k) != v}
    inside = {"TORCHELASTIC_SIGNALS_TO_HANDLE", "TORCHELASTIC_MAX_RESTARTS"}
    differ = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
    families = (
        "RANK",
        "LOCAL_",
        "WORLD_",
        "GROUP_",
        "ROLE_",
        "MASTER_",
        "TORCH_",
        "TORCHELASTIC_",
        "OMP_",
        "NCCL_",
    )
    expected = {k: v for k, v in theirs.items() if k.startswith(families) and k not in inside | differ}
    assert {"RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "ROLE_NAME"} <= set(expected)
    assert {k: mine.get(k) for k in expected} == expected
    assert differ | {"TORCHELASTIC_MAX_RESTARTS"} <= set(mine)
