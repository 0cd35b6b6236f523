"""Trainers (Hugging Face, Accelerate, Lightning): a rank is killed, and the loss curve goes on as if not."""

import importlib.util
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from paceline.client import process
from support.cluster import Cluster, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 24
OVERRIDES = (f"inputs.steps={STEPS}", "inputs.save_every=8")
DIE = "os.environ['PACELINE_ATTEMPT'] == '1' and os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed (make test-launchers)"
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("trainers"), agents=2, cpus=1) as cluster:
        yield cluster


def changed(cluster: Cluster, example: str, name: str, script: str, *edits: tuple[str, str]) -> Path:
    """The example's job with edits in one of its scripts."""
    code = cluster.folder / name / example
    shutil.copytree(EXAMPLES / example, code)
    shutil.copytree(EXAMPLES / "chargpt", code.parent / "chargpt", dirs_exist_ok=True)
    text = (code / script).read_text()
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (code / script).write_text("import os\n" + text)
    return code / "job.yaml"


def losses(cluster: Cluster, job: int, pattern: str, attempt: int) -> list[float]:
    """Of rank 0, step by step."""
    output = cluster.output(job, rank=0, attempt=attempt).decode()
    return [float(found) for found in re.findall(pattern, output)]


def check_goes_on(
    cluster: Cluster,
    example: str,
    pattern: str,
    script: str,
    *edits: tuple[str, str],
    overrides: tuple[str, ...] = OVERRIDES,
) -> None:
    whole = cluster.client.submit(EXAMPLES / example / "job.yaml", overrides=overrides)
    cluster.wait_state(whole, "SUCCEEDED", timeout_s=300)
    curve = losses(cluster, whole, pattern, 1)
    assert len(curve) == STEPS
    assert curve[-1] < curve[0] - 0.5

    job = cluster.client.submit(changed(cluster, example, "killed", script, *edits), overrides=overrides)
    assert cluster.wait_state(job, "SUCCEEDED", timeout_s=300).attempt == 2
    assert losses(cluster, job, pattern, 1)[:12] == curve[:12]
    assert losses(cluster, job, pattern, 2) == curve[8:]
    steps = [one.step for one in cluster.client.job(job).checkpoints]
    assert steps and steps[0] == STEPS


def check_stops(cluster: Cluster, example: str, pattern: str) -> None:
    """A stop that is asked for is saved: the last step is in a checkpoint."""
    endless = ["inputs.steps=100000", "inputs.save_every=100000"]
    job = cluster.client.submit(EXAMPLES / example / "job.yaml", overrides=endless)
    wait_until("it trains", lambda: len(losses(cluster, job, pattern, 1)) > 3, 200)
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED", timeout_s=60)
    done = len(losses(cluster, job, pattern, 1))
    assert [one.step for one in cluster.client.job(job).checkpoints] == [done]


def check_unchanged_goes_on(cluster: Cluster, example: str, pattern: str) -> None:
    """Of a script that knows nothing of us: killed from outside, it goes on from a checkpoint of its own."""
    file, overrides = EXAMPLES / example / "unchanged.yaml", ["inputs.steps=100", "inputs.save_every=40"]
    whole = cluster.client.submit(file, overrides=overrides)
    cluster.wait_state(whole, "SUCCEEDED", timeout_s=300)
    curve = losses(cluster, whole, pattern, 1)

    job = cluster.client.submit(file, overrides=overrides)
    wait_until("it is past its checkpoint", lambda: len(losses(cluster, job, pattern, 1)) > 41, 200)
    found = process.identify(cluster.gang_pids(job, 2)[1])
    assert found is not None
    process.send(found, signal.SIGKILL)
    assert cluster.wait_state(job, "SUCCEEDED", timeout_s=300).attempt == 2
    assert losses(cluster, job, pattern, 2) == curve[40:]
    assert cluster.client.job(job).checkpoints == (), "none went through ours"


@needs("transformers")
class TestTransformers:
    PATTERN = r"'loss': '?(\d+\.\d+)"

    def test_a_killed_rank_costs_what_came_after_the_checkpoint(self, cluster: Cluster) -> None:
        hook = "    def on_step_begin(self, a, state, c, **_): state.global_step == 12 and " + DIE + "\n"
        edit = ("parser = ", f"class Dying(PacelineCallback):\n{hook}\nparser = ")
        check_goes_on(
            cluster, "transformers", self.PATTERN, "train.py", edit, ("= PacelineCallback()", "= Dying()")
        )

    def test_a_stop_is_saved(self, cluster: Cluster) -> None:
        check_stops(cluster, "transformers", self.PATTERN)

    def test_a_script_that_knows_nothing_of_us_goes_on_from_its_own_checkpoint(
        self, cluster: Cluster
    ) -> None:
        check_unchanged_goes_on(cluster, "transformers", self.PATTERN)


@needs("accelerate")
def test_accelerate_goes_on_after_a_kill(cluster: Cluster) -> None:
    """It repeats no batch and skips none, or its losses were others."""
    line = "        loss = model(characters, targets)\n"
    edit = (line, f"        done == 12 and (run.flush(), {DIE})\n{line}")  # its steps are shorter than a save
    samples = STEPS * 16 * 2
    overrides = (f"inputs.samples={samples}", "inputs.save_every=8 steps")
    check_goes_on(cluster, "accelerate", r"step \d+, loss (\d+\.\d+)", "train.py", edit, overrides=overrides)


@needs("lightning")
class TestLightning:
    PATTERN = r"rank 0: step \d+, loss (\d+\.\d+)"

    def test_a_killed_rank_costs_what_came_after_the_checkpoint(self, cluster: Cluster) -> None:
        line = "        loss: Tensor = self.model(*batch)\n"
        edit = (line, f"        self.global_step == 12 and {DIE}\n{line}")
        check_goes_on(cluster, "lightning", self.PATTERN, "charmodule.py", edit)

    def test_a_stop_is_saved(self, cluster: Cluster) -> None:
        check_stops(cluster, "lightning", self.PATTERN)

    def test_a_script_that_knows_nothing_of_us_goes_on_from_its_own_checkpoint(
        self, cluster: Cluster
    ) -> None:
        check_unchanged_goes_on(cluster, "lightning", self.PATTERN)
