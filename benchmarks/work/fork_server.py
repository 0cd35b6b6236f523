"""The floor of launch and restart: FOLDER. A process that has imported torch and forks ranks of the training.

Nothing schedules, nothing is stored, nothing is isolated: fork, init_process_group, DDP, step. A restart is
waitpid's news of the death, the end of the other rank, fork, init, load, step; each part is timed.
"""

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import records  # noqa: E402 - after the path is set
from benchmarks.peers.processes import free_port  # noqa: E402
from benchmarks.peers.work.driver import claim_stdout, serve  # noqa: E402
from benchmarks.peers.work.waiting import wait_until  # noqa: E402


def main() -> None:
    answers = claim_stdout()
    import torch
    import torch._dynamo
    import torch.distributed
    import torch.optim

    from benchmarks.work import train  # noqa: F401

    torch.set_num_threads(1)
    forks = Forks(Path(sys.argv[1]))
    serve(answers, launch=forks.launch, restart=forks.restart)


class Forks:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0

    def launch(self, ranks: int) -> float:
        folder = self._new_folder()
        began = time.time()
        pids = fork_ranks(folder, ranks, steps=1, save_every=0)
        try:
            # Not to their end: a rank may wait there for the store of one that has left already.
            done = wait_until(
                lambda: records.first_step_at(folder, world=ranks), "first step", timeout_s=20, every_s=0.004
            )
        finally:
            end(pids)
        return done - began

    def restart(self, ranks: int) -> dict[str, float]:
        folder = self._new_folder()
        pids = fork_ranks(folder, ranks, steps=100_000, save_every=10)
        wait_until((folder / "checkpoint.pt").exists, "checkpoint")
        known = records.processes(folder)
        killed = time.time()
        os.kill(pids[1], signal.SIGKILL)
        os.waitpid(pids[1], 0)
        detected = time.time()
        end(pids[:1])
        pids = fork_ranks(folder, ranks, steps=100_000, save_every=10)
        stepped = wait_until(lambda: records.next_step_at(folder, killed, known), "next step")
        end(pids)
        return records.parts(folder, killed=killed, detected=detected, stepped=stepped, known=known)

    def _new_folder(self) -> Path:
        self._runs += 1
        folder = self._folder / f"floor-{self._runs}"
        folder.mkdir()
        return folder


def end(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def fork_ranks(folder: Path, ranks: int, *, steps: int, save_every: int) -> list[int]:
    port = free_port()
    return [
        fork_rank(folder, rank, ranks, port=port, steps=steps, save_every=save_every) for rank in range(ranks)
    ]


def fork_rank(folder: Path, rank: int, ranks: int, *, port: int, steps: int, save_every: int) -> int:
    if pid := os.fork():
        return pid
    from benchmarks.work import train

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["STEP_S"] = "0.02" if save_every else "0"
    status = 1
    try:
        train.train(folder, steps, save_every, folder)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
