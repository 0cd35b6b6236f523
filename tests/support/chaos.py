"""One round of chaos over a real cluster: which faults, when, and what must be true in the end.

A two-node gang counts, small jobs come and go. Faults hit the scheduler, the agents, their zygotes, shims and
ranks, and the network of local-0. When it is over and healed, every acknowledged job has ended as it should,
each attempt started once, no line is lost or doubled, and (Cluster) no process is left.
"""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from paceline.client import process
from paceline.client.process import Identity
from paceline.spec.ids import JobId

from .cluster import Cluster, wait_until
from .counting import Counting
from .proxy import Proxy

FAULTS = 5
SETTINGS = ("--heartbeat", "0.5", "--lease-exclusive", "3", "--replace-exclusive", "6")


class Round:
    """`seed` decides which faults come, in which order, whom they hit and how long they last."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._luck = random.Random(seed)
        self._seed = seed
        self._cluster = Cluster(folder, agents=0, cpus=3, scheduler_args=SETTINGS, agent_args=["--cold"])
        self._jobs: dict[JobId, Counting] = {}
        self._did: list[str] = []

    def run(self) -> None:
        with self._cluster as cluster:
            host, _, port = cluster.address.rpartition(":")
            with Proxy((host, int(port)), seed=self._seed) as proxy:
                self._proxy = proxy
                self._start_agent(0, wait=True)
                self._start_agent(1, wait=True)
                try:
                    self._ride()
                except BaseException as error:
                    error.add_note(f"chaos of seed {self._seed}: {'; '.join(self._did)}")
                    raise

    def _ride(self) -> None:
        retry = {"max_attempts": 1000, "backoff": {"start_s": 0}}
        gang = self._submit("gang", instances=2, retry=retry)
        alone = self._submit("alone", exclusive=True, retry=retry)
        gang.wait_running(1)
        alone.wait_running(1)
        for number in range(FAULTS):
            small = self._submit(f"small-{number}", exit_code=number % 3, retry=retry)
            if number % 3 == 0:  # others would be tried again and again: they end when all is healed
                small.stop()
            fault = self._luck.choice(self._faults())
            self._did.append(fault.__name__.strip("_"))
            fault()
            time.sleep(self._luck.uniform(0.0, 1.0))
        self._heal()
        self._check()

    def _submit(self, name: str, **keys: object) -> Counting:
        counting = Counting(self._folder / name, cpus=0.5, **keys)  # type: ignore[arg-type]
        self._jobs[self._cluster.submit_text(counting.text)] = counting
        return counting

    # Faults. Each leaves the cluster able to heal.

    def _faults(self) -> list[Callable[[], None]]:
        return [
            self._kill_scheduler,
            self._stop_scheduler,
            self._kill_agent,
            self._kill_both_agents,
            self._kill_below,
            self._kill_rank,
            self._kill_node,
            self._freeze,
            self._partition,
            self._cut,
        ]

    def _kill_scheduler(self) -> None:
        self._cluster.kill_scheduler()
        self._cluster.start_scheduler()

    def _stop_scheduler(self) -> None:
        self._cluster.stop_scheduler()
        self._cluster.start_scheduler()

    def _kill_agent(self) -> None:
        index = self._luck.randrange(2)
        self._cluster.kill_agent(index)
        self._start_agent(index)

    def _kill_both_agents(self) -> None:
        for index in (0, 1):
            self._cluster.kill_agent(index)
        for index in (0, 1):
            self._start_agent(index)

    def _kill_below(self) -> None:
        """A zygote, a shim, or a rank."""
        below = self._below(self._luck.randrange(2))
        if below:
            process.send(self._luck.choice(below), signal.SIGKILL)

    def _kill_rank(self) -> None:
        starts = [start.pid for counting in self._jobs.values() for start in counting.starts()]
        living = [found for pid in starts if (found := process.identify(pid)) is not None]
        if living:
            process.send(self._luck.choice(living), signal.SIGKILL)

    def _kill_node(self) -> None:
        index = self._luck.randrange(2)
        for found in [self._cluster.agents[index].identity, *self._below(index)]:
            process.send(found, signal.SIGKILL)
        self._cluster.kill_agent(index)
        self._start_agent(index)

    def _freeze(self) -> None:
        """SIGSTOP somebody for a while that may be shorter or longer than it takes to be given up."""
        scheduler = self._cluster.scheduler
        assert scheduler is not None
        index = self._luck.randrange(2)
        candidates = [scheduler.identity, self._cluster.agents[index].identity, *self._below(index)]
        victim = self._luck.choice(candidates)
        process.send(victim, signal.SIGSTOP)
        time.sleep(self._luck.uniform(0.2, 3.0))
        process.send(victim, signal.SIGCONT)

    def _partition(self) -> None:
        self._proxy.stall(up=self._luck.random() < 0.7, down=True)
        time.sleep(self._luck.uniform(0.2, 4.0))
        self._proxy.heal()

    def _cut(self) -> None:
        self._proxy.duplicate(self._luck.random() < 0.5)
        self._proxy.cut()
        self._proxy.delay(0.0, jitter_s=self._luck.uniform(0, 0.2))

    # Helpers.

    def _below(self, index: int) -> list[Identity]:
        """The node's zygotes, shims and ranks."""
        state = str(self._cluster.agent_state(index))
        tasks = process.with_environment("PACELINE_TASK_FOLDER", lambda value: value.startswith(state))
        return [*process.descendants(self._cluster.agents[index].identity), *tasks]

    def _start_agent(self, index: int, *, wait: bool = False) -> None:
        address = f"127.0.0.1:{self._proxy.port}" if index == 0 else ""
        self._cluster.start_agent(index, wait=wait, address=address)

    def _heal(self) -> None:
        self._proxy.duplicate(False)
        self._proxy.delay(0.0)
        self._proxy.heal()
        for index in (0, 1):
            self._cluster.wait_connected(index)
        wait_until("the cluster is trusted", lambda: not self._cluster.client.nodes().suspected)

    def _check(self) -> None:
        cluster = self._cluster
        for counting in self._jobs.values():
            counting.stop()
        for job, counting in self._jobs.items():
            if counting.exit_code:
                cluster.client.cancel(job)
        for job, counting in self._jobs.items():
            found = cluster.wait_state(job)
            expected = {"CANCELLED", "FAILED"} if counting.exit_code else {"SUCCEEDED"}
            assert found.state in expected, cluster.story(job, f"{found.state}, not {expected}")
            counting.check(
                cluster,
                job,
                attempts=found.attempt,
                state=found.state,
                alone='"exclusive": true' in counting.text,
            )
        for index in (0, 1):
            tasks = cluster.agent_state(index) / "tasks"
            wait_until(
                "the folders of ended tasks are dropped", lambda tasks=tasks: not list(tasks.iterdir())
            )
