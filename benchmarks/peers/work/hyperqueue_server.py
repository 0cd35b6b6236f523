"""Run by the interpreter that has hyperqueue: FOLDER WORKERS CORES."""

import sys
import time
from pathlib import Path

from driver import claim_stdout, serve
from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig


def main() -> None:
    answers = claim_stdout()
    folder, workers, cores = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with LocalCluster(str(folder / "server")) as cluster:
        for _ in range(workers):
            cluster.start_worker(WorkerConfig(cores=cores))
        work = Work(cluster.client(), folder)
        serve(answers, array=work.array, jobs=work.jobs, starts=work.starts)


class Work:
    def __init__(self, client, folder):
        self.client = client
        self.folder = folder

    def array(self, tasks):
        """One job of many tasks."""
        job = Job()
        for _ in range(tasks):
            job.program(["true"], stdout=None, stderr=None)
        started = time.monotonic()
        self.client.wait_for_jobs([self.client.submit(job)])
        return time.monotonic() - started

    def jobs(self, count):
        """Many jobs of one task, submitted one by one."""
        made = [self.one("true") for _ in range(count)]
        started = time.monotonic()
        self.client.wait_for_jobs([self.client.submit(job) for job in made])
        return time.monotonic() - started

    def starts(self, count, rate):
        """Submit at `rate` a second; each task writes the time at which it runs."""
        output = self.folder / "starts"
        output.mkdir(exist_ok=True)
        submitted, handles = [], []
        begin = time.monotonic()
        for index in range(count):
            time.sleep(max(0.0, begin + index / rate - time.monotonic()))
            submitted.append(time.time())
            handles.append(
                self.client.submit(self.one("bash", "-c", f"echo $EPOCHREALTIME > {output}/{index}"))
            )
        self.client.wait_for_jobs(handles)
        return [float((output / str(index)).read_text()) - at for index, at in enumerate(submitted)]

    def one(self, *command):
        job = Job()
        job.program(list(command), stdout=None, stderr=None)
        return job


if __name__ == "__main__":
    main()
