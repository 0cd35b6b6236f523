"""Run inside Ray's namespace: FOLDER CPUS. Starts a local Ray and does what it is asked.

`launch`: fit() of a two-worker TorchTrainer, seconds to the first step of all ranks.
`restart`: seconds from the SIGKILL of one worker to the next step.
`restart_node`: the same of all processes of one of two nodes; a third has room.
`grow`: a second node joins an elastic run; when it started and was there, and what records.growth tells.
`logs`: seconds until all lines of many tasks are in the driver's output.
`tune`: seconds that Ray Tune takes for trials of a short training.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from driver import claim_stdout, serve
from waiting import wait_until

LOGS_S_MAX = 120
OPERATIONS = ("launch", "restart", "restart_node", "grow", "logs", "tune")
SLOT = {"slot": 1}
"""A node has one, and a worker of a run over several nodes takes one."""
ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))


def main() -> None:
    answers = claim_stdout()
    folder, cpus = Path(sys.argv[1]), int(sys.argv[2])
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:  # its sockets' paths have a bound
        ray.init(
            num_cpus=cpus,
            resources=SLOT,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=short,
        )
        work = Training(folder)
        operations = {name: getattr(work, name) for name in OPERATIONS}
        serve(answers, **operations)
        ray.shutdown()


class Training:
    def __init__(self, folder):
        self.folder = folder
        self.runs = 0

    def launch(self, ranks):
        from benchmarks import records

        folder, began = self.fit(steps=1, save_every=0, step_s=0.0, num_workers=ranks)
        at = wait_until(lambda: records.first_step_at(folder, world=ranks), "first step", timeout_s=120)
        self.thread.join(60)
        return at - began

    def restart(self, ranks):
        from benchmarks import records

        folder, _ = self.fit(steps=400, save_every=10, step_s=0.05, num_workers=ranks)
        wait_until((folder / "checkpoint.pt").exists, "checkpoint", timeout_s=120)
        known = records.processes(folder)
        victim = next(start["pid"] for start in records.starts(folder) if start["rank"] == 1)
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        at = wait_until(lambda: records.next_step_at(folder, killed, known), "next step", timeout_s=120)
        self.thread.join(120)
        return at - killed

    def restart_node(self):
        """A gang of a fixed size: what an elastic one may take is known anew every 20 s only."""
        from benchmarks import records

        with self.another_node() as lost:
            self.wait_slots(2)
            folder, _ = self.fit(
                steps=3000, save_every=10, step_s=0.02, resources_per_worker=SLOT, num_workers=2
            )
            wait_until((folder / "checkpoint.pt").exists, "checkpoint", timeout_s=120)
            with self.another_node():
                self.wait_slots(3)
                known = records.processes(folder)
                killed = kill_family(lost.pid)
                at = wait_until(
                    lambda: records.next_step_at(folder, killed, known), "next step", timeout_s=120
                )
                (folder / "enough").touch()
                self.thread.join(120)
        self.wait_slots(1)
        return at - killed

    def grow(self, steps, save_every, step_s):
        from benchmarks import records

        elastic = {"num_workers": (1, 2), "elastic_resize_monitor_interval_s": 0.1}
        folder, _ = self.fit(
            steps=steps, save_every=save_every, step_s=step_s, resources_per_worker=SLOT, **elastic
        )
        wait_until((folder / "checkpoint.pt").exists, "checkpoint", timeout_s=120)
        started_at = time.time()
        with self.another_node():
            self.wait_slots(2)
            ready_at = time.time()
            grown = wait_until(lambda: records.growth(folder, 2), "step of two", timeout_s=120, every_s=0.05)
            (folder / "enough").touch()
            self.thread.join(120)
        self.wait_slots(1)
        return {"started_at": started_at, "ready_at": ready_at, "grown": dataclasses.asdict(grown)}

    def wait_slots(self, nodes):
        import ray

        there = f"nodes: {nodes}"
        wait_until(lambda: ray.cluster_resources().get("slot", 0) == nodes, there, timeout_s=60)

    @contextmanager
    def another_node(self):
        """On this host, as `ray start` makes it; its end is that process's."""
        import ray

        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        command += [f"--address={ray.get_runtime_context().gcs_address}", f"--resources={json.dumps(SLOT)}"]
        node = subprocess.Popen([*command, "--node-ip-address=127.0.0.1"], stdin=subprocess.DEVNULL)
        try:
            yield node
        finally:
            node.terminate()
            node.wait(60)

    def logs(self, tasks, lines):
        """Seconds from the submit of tasks that print 100-byte lines to the last one in the driver's log."""
        import ray

        @ray.remote(num_cpus=1)
        def write(task):
            for number in range(lines):
                print(f"PACE {task:03d} {number:08d} {'x' * 82}")

        seen = (self.folder / "ray.out").open("rb")
        seen.seek(0, os.SEEK_END)
        began, found, rest = time.monotonic(), 0, b""
        handles = [write.remote(task) for task in range(tasks)]
        deadline = began + LOGS_S_MAX
        while found < tasks * lines:
            *whole, rest = (rest + seen.read()).split(b"\n")
            found += sum(b" PACE " in line for line in whole)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{found} of {tasks * lines} lines came in {LOGS_S_MAX} s")
            time.sleep(0.01)
        took = time.monotonic() - began
        ray.get(handles)
        return took

    def tune(self, trials, at_once):
        """As the benchmark `sweep` has it: each trial the same function, one cpu each."""
        from ray import tune

        from benchmarks.work.short_training import train

        def trial(config):
            tune.report({"loss": train(config["lr"])})

        began = time.monotonic()
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"lr": tune.loguniform(1e-4, 1e-1)},
            tune_config=tune.TuneConfig(
                num_samples=trials, max_concurrent_trials=at_once, metric="loss", mode="min"
            ),
            run_config=tune.RunConfig(storage_path=str(self.folder / "tune"), verbose=0),
        )
        results = tuner.fit()
        took = time.monotonic() - began
        if len(results) != trials or results.num_errors:
            raise RuntimeError(f"{len(results)} of {trials} trials, {results.num_errors} of them failed")
        return took

    def fit(self, *, steps, save_every, step_s, **scaling):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        self.runs += 1
        folder = self.folder / f"ray-{self.runs}"
        folder.mkdir()
        trainer = TorchTrainer(
            loop,
            train_loop_config={
                "folder": str(folder),
                "steps": steps,
                "save_every": save_every,
                "step_s": step_s,
            },
            scaling_config=ScalingConfig(**scaling),
            run_config=RunConfig(
                name=folder.name, storage_path=str(self.folder), failure_config=FailureConfig(max_failures=3)
            ),
        )
        began = time.time()
        self.thread = threading.Thread(target=trainer.fit, daemon=True)
        self.thread.start()
        return folder, began


def kill_family(pid):
    """SIGKILL it and all that it has started; the time at which it began."""
    import psutil  # Ray brings it

    root = psutil.Process(pid)
    family = [root, *root.children(recursive=True)]
    killed = time.time()
    for process in family:
        with suppress(psutil.NoSuchProcess):  # it went with its parent
            process.kill()
    return killed


def loop(config):
    """The worker: the same training as everywhere, in the process group that Ray has made."""
    sys.path.insert(0, str(ROOT))
    os.environ["STEP_S"] = str(config["step_s"])
    from benchmarks.work import train

    folder = Path(config["folder"])
    train.train(folder, config["steps"], config["save_every"], folder)


if __name__ == "__main__":
    main()
