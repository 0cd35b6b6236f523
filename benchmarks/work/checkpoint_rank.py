"""One rank with a state of so many MB, that saves and restores it in every way that is compared.

Arguments: FOLDER MEMORY MB DEVICE.

A model with AdamW's moments, in float32. All ways save the same tensors. What is read "from disk" was dropped
from the page cache first.
"""

import mmap
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.work.driver import claim_stdout, serve  # noqa: E402 - after the path is set

WIDTH = 1024
CHUNK_BYTES = 16 * 1024 * 1024


def main() -> None:
    answers = claim_stdout()
    warnings.filterwarnings("ignore")
    rank = Rank(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
    names = [name for name in dir(rank) if not name.startswith("_")]
    serve(answers, **{name: getattr(rank, name) for name in names if callable(getattr(rank, name))})
    rank._close()


class Rank:
    def __init__(self, folder: Path, memory: Path, megabytes: float, device: str) -> None:
        import torch
        from paceline.training.environment import Environment
        from paceline.training.run import Run
        from paceline.training.task import Retention
        from torch import distributed, nn

        self._torch = torch
        self._device = device
        self._folder = folder
        store = f"file://{folder}/store-{os.getpid()}"
        distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        layers = max(1, round(megabytes * 1e6 / 3 / 4 / WIDTH / (WIDTH + 1)))
        self._model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers))).to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-6)
        self._train_step()
        self._tensors = [
            tensor
            for parameter in self._model.parameters()
            for tensor in (parameter.detach(), *self._moments(parameter))
        ]
        self._bytes = sum(tensor.nbytes for tensor in self._tensors)
        pinned = device == "cuda"
        self._copies = [torch.empty(each.shape, pin_memory=pinned).fill_(1) for each in self._tensors]
        self._stager: Any = None
        self._raw = mmap.mmap(-1, self._bytes // mmap.PAGESIZE * mmap.PAGESIZE)
        self._torch.frombuffer(self._raw, dtype=torch.uint8).fill_(1)
        self._memory = memory
        self._root = folder / "ours"
        self._environment = Environment(memory_folder=self._memory)
        self._make_run = lambda environment: Run(environment, self._root, Retention(keep_last=1))
        self._run = self._make_run(self._environment)
        self._step = 0
        self._numbers = iter(range(1_000_000))
        for _ in range(2):  # both images are there: from now on only reused
            self.ours()

    # Saving. Each gives how long training stood still, in seconds.

    def memcpy(self) -> float:
        """The floor: the same bytes into buffers that are there."""
        began = time.perf_counter()
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._synchronize()
        return time.perf_counter() - began

    def memcpy_back(self) -> float:
        """The same, from there."""
        began = time.perf_counter()
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copy, non_blocking=True)
        self._synchronize()
        return time.perf_counter() - began

    def ours(self) -> dict[str, float]:
        """And the rate at which it then came to storage, hashed and published, as the run itself tells."""
        self._step += 1
        began = time.perf_counter()
        self._run.save(self._step, model=self._model, optimizer=self._optimizer)
        stall_s = time.perf_counter() - began
        outcome = self._run.flush()
        assert outcome is not None
        assert outcome.published, outcome.error
        cost_s = self._run._cost_s()
        assert cost_s is not None
        return {"stall_s": stall_s, "MB/s": self._rate(cost_s[1])}

    def torch_save(self) -> float:
        return self._timed(lambda path: self._torch.save(self._state(), path))

    def dcp_save(self) -> dict[str, float]:
        from torch.distributed import checkpoint

        took_s = self._timed(lambda path: checkpoint.save(self._state(), checkpoint_id=path))
        return {"stall_s": took_s, "MB/s": self._rate(took_s)}

    def async_save(self, kind: str) -> float:
        """Its second part is waited for, and not timed."""
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        pending: list[Any] = []
        how: dict[str, Any] = {"async_checkpointer_type": AsyncCheckpointerType.THREAD}
        if kind == "pinned":
            first, how["async_stager"] = self._stager is None, self._kept_stager()
            if first:  # takes its memory, which it keeps
                self._timed(
                    lambda path: pending.append(
                        checkpoint.async_save(self._state(), checkpoint_id=path, **how)
                    ),
                    lambda: pending.pop().result(),
                )
        else:
            how["async_checkpointer_type"] = AsyncCheckpointerType(kind)

        def save(path: Path) -> None:
            pending.append(checkpoint.async_save(self._state(), checkpoint_id=path, **how))

        return self._timed(save, lambda: pending[0].result())  # noqa: PLW0108 - not there yet

    def keeps_stager(self) -> bool:
        """Whether torch's stager serves a second time; that of 2.11 forgets how to copy after the first."""
        stager = self._kept_stager()
        try:
            stager.stage({"step": 1})
            stager.stage({"step": 1})
        except KeyError:
            return False
        return True

    def _kept_stager(self) -> Any:
        if self._stager is None:
            from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

            self._stager = DefaultStager(StagingOptions(True, False, False, True))
        return self._stager

    def write(self) -> float:
        """In MB/s: as many bytes, written through the page cache and fsynced."""
        return self._write(0)

    def write_direct(self) -> float:
        """The floor of persisting, in MB/s: likewise, past the page cache."""
        return self._write(os.O_DIRECT)

    def _write(self, flag: int) -> float:
        data = memoryview(self._raw)
        path = self._folder / "raw"
        began = time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
        for offset in range(0, len(data), CHUNK_BYTES):
            os.write(fd, data[offset : offset + CHUNK_BYTES])
        os.fsync(fd)
        os.close(fd)
        rate = len(data) / 1e6 / (time.perf_counter() - began)
        path.unlink()
        return rate

    # Restoring, in seconds.

    def from_memory(self) -> float:
        """As after the loss of a worker: the images are mapped anew, hashed and copied."""
        return self._restore(self._environment, "memory")

    def from_disk(self) -> float:
        """As on another node: read from the disk and hashed, then read again and copied."""
        self._evict()
        return self._restore(replace(self._environment, memory_folder=None), "storage")

    def dcp_load(self) -> float:
        """Stock, of our files."""
        from torch.distributed import checkpoint

        self._evict()
        state = self._state()
        began = time.perf_counter()
        checkpoint.load(state, checkpoint_id=self._newest())
        self._synchronize()
        return time.perf_counter() - began

    def read(self) -> float:
        """The floor from disk: the files' bytes."""
        self._evict()
        buffer = bytearray(CHUNK_BYTES)
        began = time.perf_counter()
        for path in self._newest().iterdir():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        return time.perf_counter() - began

    # Training.

    def lost(self, seconds: float, saves: bool) -> float:
        """Training time, in seconds, that a save costs: its stall, and by how much the steps in the time
        after it (in which it is brought to disk) take longer than those before and after that time. Machines
        get faster and slower by themselves: only neighbours are compared. Without a save: what this finds of
        nothing."""
        self._run.flush()
        before, _ = self._steps(seconds)
        began = time.perf_counter()
        if saves:
            self._step += 1
            self._run.save(self._step, model=self._model, optimizer=self._optimizer)
        stall_s = time.perf_counter() - began
        beside, took_s = self._steps(seconds)
        self._run.flush()
        after, _ = self._steps(seconds)
        usual_s = (sum(before) + sum(after)) / (len(before) + len(after))
        return stall_s + took_s - len(beside) * usual_s

    def _steps(self, seconds: float) -> tuple[list[float], float]:
        """How long each takes, and all of them."""
        taken: list[float] = []
        began = time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            self._train_step()
            taken.append(time.perf_counter() - now)
        return taken, time.perf_counter() - began

    def megabytes(self) -> float:
        return self._bytes / 1e6

    # Helpers.

    def _train_step(self) -> None:
        self._optimizer.zero_grad()
        self._model(self._torch.ones(8, WIDTH, device=self._device)).sum().backward()
        self._optimizer.step()
        self._synchronize()

    def _synchronize(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def _moments(self, parameter: Any) -> tuple[Any, Any]:
        state = self._optimizer.state[parameter]
        return state["exp_avg"], state["exp_avg_sq"]

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        return {
            "model": get_model_state_dict(self._model),
            "optimizer": get_optimizer_state_dict(self._model, self._optimizer),
        }

    def _timed(self, save: Callable[[Path], Any], finish: Callable[[], Any] = lambda: None) -> float:
        path = self._folder / f"peer-{next(self._numbers)}"
        began = time.perf_counter()
        save(path)
        took_s = time.perf_counter() - began
        finish()
        os.sync()  # the next one must not pay for this one's pages
        path.unlink() if path.is_file() else shutil.rmtree(path)
        return took_s

    def _restore(self, environment: Any, tier: str) -> float:
        run = self._make_run(environment)
        began = time.perf_counter()
        restored = run.restore(model=self._model, optimizer=self._optimizer)
        self._synchronize()
        took_s = time.perf_counter() - began
        assert restored is not None
        assert restored.tier.startswith(tier), restored.tier
        run.close()
        return took_s

    def _newest(self) -> Path:
        return max(self._root.glob("step-*"))

    def _evict(self) -> None:
        """Out of the page cache: a restart after hours, or on another node, finds nothing there."""
        for path in self._newest().iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def _rate(self, seconds: float) -> float:
        return self._bytes / 1e6 / seconds

    def _close(self) -> None:
        self._run.close()


if __name__ == "__main__":
    main()
