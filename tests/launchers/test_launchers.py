"""Each launcher against the one conformance class, and the variables that it gives its ranks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.launcher import LauncherConformance
from paceline.agent.launch import Refusal, Store, make_launch
from paceline.agent.launchers import HOSTFILE, LAUNCHERS
from paceline.spec.compat import RANK_VARIABLES
from paceline.spec.distribution import LAUNCHERS as NAMES
from support.cluster import Cluster
from support.operators import give_operators, needs_deepspeed
from support.processes import PYTHON, key, of_kind, output, run, start_task, supervised

_TORCH = """
def ride(main):
    import torch.distributed as dist
    dist.init_process_group()  # the backend is chosen by the device
    assert "cpu:gloo" in dist.get_backend_config()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    main(*(int(os.environ[name]) for name in names))
    dist.destroy_process_group()
"""

_MPI = """
def ride(main):
    import torch.distributed as dist
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    mpi = {name: int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in names}
    assert "RANK" not in os.environ and int(os.environ["PMI_RANK"]) == mpi["RANK"]
    address = "tcp://" + os.environ["AZ_BATCH_MASTER_NODE"]
    dist.init_process_group("gloo", init_method=address, rank=mpi["RANK"], world_size=mpi["SIZE"])
    main(*mpi.values())
    dist.destroy_process_group()
"""


_DEEPSPEED = """
def ride(main):
    import deepspeed
    import torch.distributed as dist
    deepspeed.init_distributed("gloo", verbose=False)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    assert os.environ["CROSS_SIZE"] == "2"
    main(*(int(os.environ[name]) for name in names))
    dist.destroy_process_group()
"""

_CURVE = """
import torch
import torch.distributed as dist

def curve(zero, rank, cpu_adam=False):
    import deepspeed
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    params = {"lr": 0.01, "weight_decay": 0.01, "torch_adam": not cpu_adam}
    config = {
        "train_batch_size": 16,
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": cpu_adam,
    }
    engine = deepspeed.initialize(model=model, config=config)[0]
    assert engine.zero_optimization_stage() == zero["stage"]
    rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(2)).chunk(dist.get_world_size())[rank]
    losses = []
    for _ in range(5):
        loss = (engine(rows) - rows.sum(1, keepdim=True)).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    engine.destroy()
    return losses
"""

_ZERO = """
def main(rank, *_):
    curves = {str(stage): curve({"stage": stage}, rank) for stage in range(4)}
    offloaded = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    curves["3 with offload"] = curve(offloaded, rank)
    say(rank, curves=curves)

if __name__ == "__main__":
    ride(main)
"""

_CPU_ADAM = """
import json, os
from pathlib import Path

def main():
    import deepspeed
    deepspeed.init_distributed("gloo", verbose=False)
    operator, rank = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "cpu_adam", dist.get_rank()
    given = operator.exists()
    plain = curve({"stage": 0}, rank)  # all ranks have looked: none compiles before
    offloaded = curve({"stage": 2, "offload_optimizer": {"device": "cpu"}}, rank, cpu_adam=True)
    objects = {file.name: file.stat().st_mtime_ns for file in operator.glob("*.o")}
    print(json.dumps(dict(given=given, plain=plain, offloaded=offloaded, objects=objects)), flush=True)
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""

_OPERATORS = """
def main(rank, *_):
    from deepspeed.accelerator import get_accelerator
    mine = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    times = lambda folder: {file.name: file.stat().st_mtime_ns for file in folder.glob("**/*.o")}
    say(
        rank,
        hosts=Path(os.environ["PACELINE_HOSTFILE"]).read_text(),
        accelerator=get_accelerator().device_name(),
        objects=times(mine),
        built=times(mine.parents[1] / "built"),
    )

if __name__ == "__main__":
    ride(main)
"""


@pytest.mark.slow
class TestPyTorch(LauncherConformance):
    distribution = "{type: pytorch, process_count_per_instance: 2}"
    RIDE = _TORCH


@pytest.mark.slow
class TestMpi(LauncherConformance):
    distribution = "{type: mpi, process_count_per_instance: 2}"
    RIDE = _MPI

    def test_a_program_that_is_not_python_sees_its_rank(self, cluster: Cluster) -> None:
        text = f"distribution: {self.distribution}\nresources: {{instance_count: 2, cpus: 2}}\n"
        job = cluster.submit_text("command: echo $PMI_RANK/$PMI_SIZE $MPI_LOCALRANKID\n" + text)
        cluster.wait_state(job, "SUCCEEDED")
        assert cluster.output(job).split(b"\n")[:4] == [b"0/4 0", b"1/4 1", b"2/4 0", b"3/4 1"]


@pytest.mark.slow
@needs_deepspeed
class TestDeepSpeed(LauncherConformance):
    distribution = "{type: deepspeed, process_count_per_instance: 2}"
    RIDE = _DEEPSPEED
    built_ops: Path

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _operators(cls, built_ops: Path) -> None:
        cls.built_ops = built_ops

    @classmethod
    def prepare(cls, cluster: Cluster) -> None:
        for agent in cluster.agents:
            give_operators(cls.built_ops, cluster.agent_state(agent))

    def test_every_zero_stage_computes_the_same(self, cluster: Cluster, tmp_path: Path) -> None:
        job = self.submit(cluster, tmp_path, _CURVE + _ZERO)
        self.ends(cluster, job, tmp_path, "SUCCEEDED")
        for rank in range(4):
            curves = json.loads((tmp_path / f"1.{rank}.json").read_text())["curves"]
            assert list(curves) == ["0", "1", "2", "3", "3 with offload"]
            assert all(curve == pytest.approx(curves["0"], rel=1e-4) for curve in curves.values()), curves
            assert curves["0"][-1] < curves["0"][0]

    def test_its_operators_are_not_built_again(self, cluster: Cluster, tmp_path: Path) -> None:
        job = self.submit(cluster, tmp_path, _OPERATORS)
        self.ends(cluster, job, tmp_path, "SUCCEEDED")
        said = json.loads((tmp_path / "1.0.json").read_text())
        assert said["hosts"] == "127.0.0.1 slots=4\n"
        assert said["accelerator"] == "cpu"
        assert said["objects"] == said["built"], "ninja had nothing to do"


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_a_job_builds_itself_is_not_built_again(tmp_path: Path, built_ops: Path) -> None:
    """DeepSpeed's own Adam for an offloaded optimizer, which is no operator that is built ahead."""
    file = tmp_path / "adam.py"
    file.write_text(_CURVE + _CPU_ADAM)
    text = f"command: python {file}\ndistribution: {{type: deepspeed, process_count_per_instance: 2}}\n"
    objects = []
    with Cluster(tmp_path, agents=1, cpus=2) as cluster:
        give_operators(built_ops, cluster.agent_state())
        for given in (False, True):
            job = cluster.submit_text(text + "resources: {cpus: 2}\n")
            cluster.wait_state(job, "SUCCEEDED", timeout_s=700)
            lines = cluster.output(job).decode().splitlines()
            for said in (json.loads(line) for line in lines if line.startswith('{"given"')):
                assert said["given"] is given
                assert said["offloaded"] == pytest.approx(said["plain"], rel=1e-4)
                objects.append(said["objects"])
    assert len(objects) == 4 and objects[0]
    assert all(each == objects[0] for each in objects), "ninja had nothing to do"


@pytest.mark.slow
class TestNone:
    """Without `distribution`: nobody meets, and yet all stand and fall together."""

    TWO = "\nresources: {instance_count: 2, cpus: 2}\ngrace_s: 1\nretry: {max_attempts: 2}\n"

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
        with Cluster(tmp_path_factory.mktemp("none"), agents=2, cpus=2) as cluster:
            yield cluster

    def test_each_instance_is_told_which_it_is_and_no_rank(self, cluster: Cluster) -> None:
        say = "echo $PACELINE_TASK $PACELINE_ATTEMPT ${RANK-no} ${WORLD_SIZE-no} ${MASTER_ADDR-no}"
        job = cluster.submit_text(f"command: {say}{self.TWO}")
        cluster.wait_state(job, "SUCCEEDED")
        assert [cluster.output(job, rank=rank) for rank in (0, 1)] == [b"0 1 no no no\n", b"1 1 no no no\n"]

    def test_for_the_library_each_is_a_run_of_its_own(self, cluster: Cluster) -> None:
        code = "import paceline; run = paceline.init(); print(run.rank, run.world_size, run.attempt)"
        job = cluster.submit_text(f"command: python -c '{code}'{self.TWO}")
        cluster.wait_state(job, "SUCCEEDED")
        assert [cluster.output(job, rank=rank) for rank in (0, 1)] == [b"0 1 1\n"] * 2

    @pytest.mark.parametrize(("fails", "code"), [("exit 7", 7), ("kill -KILL $$", 137)])
    def test_one_that_fails_ends_the_others_and_the_next_attempt_starts_all(
        self, cluster: Cluster, tmp_path: Path, fails: str, code: int
    ) -> None:
        started = f"touch {tmp_path}/$PACELINE_ATTEMPT.$PACELINE_TASK"
        both = f"until [ -e {tmp_path}/$PACELINE_ATTEMPT.0 ]; do sleep 0.05; done"
        command = f"{started}; [ $PACELINE_TASK = 1 ] || exec sleep 600; {both}; {fails}"
        job = cluster.submit_text(f"command: '{command}'{self.TWO}")
        found = cluster.wait_state(job, "FAILED")
        assert (found.attempt, found.exit_code) == (2, code)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1.0", "1.1", "2.0", "2.1"]


def launch_of(launcher: str, folder: Path, **fields: Any) -> Any:
    gang = {"processes": 2, "world_size": 4, "first_rank": 2, "node_rank": 1, "node_count": 2}
    meeting = {"master_address": "10.0.0.1", "master_port": 4000}
    request = start_task(key(7, 3, 1), "python a.py", folder, launcher=launcher, **gang, **meeting, **fields)
    return make_launch(request, folder, PYTHON, {"PATH": "/usr/bin"}, {}, warm=True)


def test_the_agent_has_what_the_spec_names() -> None:
    assert set(LAUNCHERS) == {"", *NAMES}


@pytest.mark.parametrize("launcher", NAMES)
def test_the_document_warns_of_what_the_launcher_sets(launcher: str, tmp_path: Path) -> None:
    """Each variable that a rank gets, and no other; what the user may set is not among them."""
    ranks = launch_of(launcher, tmp_path).document["ranks"]
    users_own = {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "DS_ACCELERATOR", "PACELINE_HOSTFILE"}
    outside = {"RAY_ADDRESS"}  # set by the wrapper, inside the job
    for rank in ranks:
        assert set(rank["environment"]) - users_own == RANK_VARIABLES[launcher] - outside


def test_mpis_variables(tmp_path: Path) -> None:
    variables = launch_of("mpi", tmp_path).document["ranks"][1]["environment"]
    assert variables.pop("TORCHELASTIC_ERROR_FILE").endswith("rank-3.error")
    assert json.dumps(variables, sort_keys=True) == json.dumps(
        {
            "AZ_BATCH_MASTER_NODE": "10.0.0.1:4000",
            "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "4000",
            "MPI_LOCALNRANKS": "2",
            "MPI_LOCALRANKID": "1",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "OMPI_COMM_WORLD_NODE_RANK": "1",
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_UNIVERSE_SIZE": "4",
            "PMI_RANK": "3",
            "PMI_SIZE": "4",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    )


@pytest.mark.parametrize(
    ("gpus", "given", "accelerator"),
    [
        ([], {}, "cpu"),
        ([0, 3], {}, None),
        ([], {"DS_ACCELERATOR": "xpu"}, "xpu"),
        ([0, 3], {"DS_ACCELERATOR": "cpu"}, "cpu"),
    ],
)
def test_deepspeed_computes_on_the_cpu_where_no_gpu_was_given_unless_told_otherwise(
    tmp_path: Path, gpus: list[int], given: dict[str, str], accelerator: str | None
) -> None:
    document = launch_of("deepspeed", tmp_path, gpu_indices=gpus, environment=given).document
    for rank in document["ranks"]:
        assert (document["environment"] | rank["environment"]).get("DS_ACCELERATOR") == accelerator


def test_deepspeeds_hosts_are_in_a_file_that_names_each_once(tmp_path: Path) -> None:
    """With a slot for each process on it: the second of these nodes has two of the gang's tasks."""
    hosts = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.2"]
    request = start_task(key(7), "python a.py", tmp_path, launcher="deepspeed", processes=2, hosts=hosts)
    files = LAUNCHERS["deepspeed"].files(request)
    assert files == {HOSTFILE: "10.0.0.1 slots=2\n10.0.0.2 slots=4\n10.0.0.3 slots=2\n"}
    for rank in launch_of("deepspeed", tmp_path, hosts=hosts).document["ranks"]:
        assert rank["environment"]["PACELINE_HOSTFILE"] == str(tmp_path / HOSTFILE)


def test_a_gang_whose_hosts_are_not_told_has_no_hostfile(tmp_path: Path) -> None:
    assert not LAUNCHERS["deepspeed"].files(start_task(key(7), "python a.py", tmp_path, launcher="deepspeed"))
    [first, *_] = launch_of("deepspeed", tmp_path).document["ranks"]
    assert "PACELINE_HOSTFILE" not in first["environment"]


def test_only_mpi_can_do_without_the_store(tmp_path: Path) -> None:
    found = {name: launch_of(name, tmp_path, hosts_rendezvous=True).store for name in NAMES}
    assert found == dict.fromkeys(NAMES, Store.NEEDED) | {"mpi": Store.OPTIONAL}
    without = launch_of("mpi", tmp_path, hosts_rendezvous=True).without_store()
    assert (without.store, without.document["store"]) == (Store.NONE, None)


def test_a_launcher_of_a_newer_scheduler_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no launcher 'mpi4'; it has pytorch") as caught:
        launch_of("mpi4", tmp_path)
    assert caught.value.transient


async def test_without_torch_mpi_runs_and_pytorch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    async with supervised(tmp_path / "state", preload=("torch",)) as supervisor:
        said = {}
        for job, launcher in enumerate(("mpi", "pytorch"), 1):
            request = start_task(
                key(job),
                "echo $PMI_RANK of $PMI_SIZE",
                tmp_path,
                launcher=launcher,
                hosts_rendezvous=True,
                master_address="127.0.0.1",
                master_port=supervisor.rendezvous_ports()[0],
                environment={"PYTHONPATH": str(tmp_path)},
            )
            said[launcher] = await run(supervisor, request)
        assert list(of_kind(said["mpi"], "ended")[0].exit_codes) == [0]
        assert output(supervisor, key(1)) == "0 of 1\n"
        assert of_kind(said["pytorch"], "refused")[0].reason.code == "no-torch"
