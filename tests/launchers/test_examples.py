"""The examples of each launcher as a user submits them, cut short: two instances, real text, lower losses."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, wait_until
from support.operators import give_operators, needs_deepspeed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
UNTRAINED = 4.85
"""ln 128: what guessing costs."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("examples"), agents=2, cpus=1) as cluster:
        yield cluster


def output_of(cluster: Cluster, example: str, *overrides: str) -> str:
    job = cluster.client.submit(EXAMPLES / example, overrides=overrides)
    cluster.wait_state(job, "SUCCEEDED", timeout_s=300)
    return cluster.output(job).decode()


def losses(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"loss (\d+\.\d+)", output)]


def test_fsdp(cluster: Cluster) -> None:
    output = output_of(cluster, "chargpt/fsdp.yaml", "inputs.steps=40")
    first, second = losses(output)
    assert first == second < UNTRAINED - 1.5
    assert output.count("2 ranks, step 0 of 40") == 2


def test_fsdp_goes_on_from_its_checkpoint_and_ends_as_if_undisturbed(cluster: Cluster) -> None:
    """The second run is stopped at step 20 by the failure of a rank, and goes on in a new attempt."""
    whole = losses(output_of(cluster, "chargpt/fsdp.yaml", "inputs.steps=40"))
    crash = "if done == 30 and os.environ['PACELINE_ATTEMPT'] == '1': run.flush(); run.rank and sys.exit(5)"
    source = (EXAMPLES / "chargpt" / "train_fsdp.py").read_text()
    changed = source.replace("        done += 1\n", f"        done += 1\n        {crash}\n")
    assert changed != source
    code = cluster.folder / "crashing"
    code.mkdir()
    (code / "train_fsdp.py").write_text("import os, sys\n" + changed)
    (code / "chargpt.py").write_text((EXAMPLES / "chargpt" / "chargpt.py").read_text())
    (code / "fsdp.yaml").write_text((EXAMPLES / "chargpt" / "fsdp.yaml").read_text())
    job = cluster.client.submit(code / "fsdp.yaml", overrides=["inputs.steps=40"])
    assert cluster.wait_state(job, "SUCCEEDED", timeout_s=300).attempt == 2
    output = cluster.output(job, attempt=2).decode()
    assert "2 ranks, step 20 of 40" in output
    assert losses(output) == whole


def stopped_at(cluster: Cluster, job: int) -> int:
    """Cancel it once it trains; the step at which all of its ranks left."""
    wait_until("it trains", lambda: (cluster.client.job(job).step or 0) > 3, 200)
    cluster.client.cancel(job)
    cluster.wait_state(job, "CANCELLED", timeout_s=100)
    first, second = re.findall(r"at step (\d+)", cluster.output(job).decode())
    assert first == second
    return int(first)


def test_fsdp_saves_when_it_is_asked_to_stop(cluster: Cluster) -> None:
    command = "command=python train_fsdp.py --steps 100000 --save-every 100000"
    job = cluster.client.submit(EXAMPLES / "chargpt" / "fsdp.yaml", overrides=[command])
    step = stopped_at(cluster, job)
    assert [one.step for one in cluster.client.job(job).checkpoints] == [step]


@pytest.fixture
def with_operators(cluster: Cluster, built_ops: Path) -> Cluster:
    for agent in cluster.agents:
        if not (cluster.agent_state(agent) / "ops").exists():
            give_operators(built_ops, cluster.agent_state(agent))
    return cluster


@needs_deepspeed
def test_deepspeed_saves_when_it_is_asked_to_stop(with_operators: Cluster, tmp_path: Path) -> None:
    command = "command=python train_deepspeed.py --deepspeed_config zero2.json --steps 100000"
    command += f" --save-every 100000 --checkpoints {tmp_path / 'zero'}"
    job = with_operators.client.submit(EXAMPLES / "chargpt" / "zero2.yaml", overrides=[command])
    step = stopped_at(with_operators, job)
    assert (tmp_path / "zero" / "latest").read_text() == f"global_step{step}"


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(with_operators: Cluster, stage: int) -> None:
    cluster = with_operators
    output = output_of(cluster, f"chargpt/zero{stage}.yaml", "inputs.steps=40")
    for rank in range(2):
        assert f"rank {rank} of 2: ZeRO-{stage} on cpu, step 0 of 40" in output
    assert max(losses(output)) < UNTRAINED - 1.5


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="Accelerate is not installed (make test-launchers)"
)
def test_accelerate(cluster: Cluster) -> None:
    output = output_of(cluster, "accelerate/job.yaml")
    assert "2 processes, 50 steps" in output
    first, second = losses(
        "".join(re.findall(r"50 steps, loss .*\n", output))
    )  # one process of each instance
    assert first == second < UNTRAINED - 1.5
