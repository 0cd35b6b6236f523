"""Job files in Azure's shape: each key is honoured, warned about by name and line, or refused."""

from pathlib import Path

import pytest
from paceline.spec.job import InvalidDocument, JobSpec, parse_job
from paceline.spec.resources import GangDemand, Resources
from paceline.spec.sweep_reading import Spec, parse_canonical_document, parse_document
from support.sweeps import as_sweep

FOLDER = Path(__file__).parent / "azure"

SHM = "{}:3: resources.shm_size: not needed: processes share the node's /dev/shm, with no limit of their own"
WARNED = {
    "data_asset": [
        "5:3: inputs.s: the command gets this text as it is; an asset is named by `path: azureml:cifar:1`"
    ],
    "hello": [],
    "mpi": [],
    "deepspeed": ["6:3: environment_variables.RANK: set for each rank; this value is replaced"],
    "ray": [
        "5:3: distribution.port: not used: a free port is chosen; RAY_ADDRESS names it",
        "6:3: distribution.include_dashboard: not used: no dashboard is started",
    ],
    "sweep_early_stopping": [
        "15:1: compute: where the cluster has no pools, the job runs on any node that fits",
        "42:3: queue_settings.job_tier: not used here; priority says what goes first",
    ],
    "curated_by_id": ["3:1: compute: where the cluster has no pools, the job runs on any node that fits"],
    "conda_on_image": [
        "8:3: environment.conda_file: nothing is installed; a node must map"
        " 'mcr.microsoft.com/azureml/base:1' to an interpreter that has these packages"
    ],
    "distributed": [
        "22:1: compute: where the cluster has no pools, the job runs on any node that fits",
        SHM.format(28),
    ],
    "everything": [
        "19:25: outputs.p.path: not used yet; outputs are kept in the job's own folder",
        "23:3: environment.image: not used: nodes look up 'torch-image:7'",
        "24:3: environment.conda_file: nothing is installed; a node must map 'torch-image:7' to an"
        " interpreter that has these packages",
        "29:3: environment_variables.RANK: set for each rank; this value is replaced",
        "34:3: resources.instance_type: not used yet; say cpus, memory and gpus instead",
        SHM.format(36),
        "37:3: resources.docker_args: not used: the nodes choose how a container is started",
        "38:3: resources.locations: not used: nodes have no location",
        "39:3: resources.properties: not used here",
        "41:18: queue_settings.job_tier: not used here; priority says what goes first",
        "43:3: services.board: not started here",
        "44:3: services.shell: not started here",
        "45:1: identity: not used here; processes run as the agent's user",
        "46:1: parent_job_name: not used here",
        "47:1: id: written by Azure's service for a job that ran there; ignored",
        "48:1: status: written by Azure's service for a job that ran there; ignored",
        "49:1: creation_context: written by Azure's service for a job that ran there; ignored",
        "50:1: log_files: written by Azure's service for a job that ran there; ignored",
    ],
}

REFUSED = {
    "tensorflow": [
        "4:9: distribution.type: tensorflow is not supported; expected pytorch, deepspeed, mpi, ray"
    ],
    "ray_elsewhere": [
        "4:12: distribution.address: the job's cluster is its own; it joins no other",
        "5:30: distribution.head_node_additional_args: not passed on; resources says what each instance has",
    ],
    "sweep": ["1:1: limits: required key 'max_total_trials' is missing"],
    "pipeline": ["1:7: type: pipeline: pipelines are not supported yet; expected command"],
    "file_environment_and_git_code": [
        "2:7: code: code is not fetched from URIs yet; give a folder",
        "3:14: environment: environment files are not supported; expected a name that nodes map to an"
        " interpreter, the absolute path of an interpreter or venv,"
        " or a mapping with requirements or conda_file",
    ],
}


def read(name: str) -> tuple[Spec, list[str]]:
    spec, cautions = parse_document((FOLDER / f"{name}.yml").read_bytes(), "job.yml")
    places = sorted(cautions, key=lambda caution: (caution.line, caution.column))
    return spec, [str(caution).removeprefix("job.yml:") for caution in places]


def read_job(name: str) -> JobSpec:
    spec, _ = read(name)
    assert isinstance(spec, JobSpec)
    return spec


def test_every_file_is_in_a_table() -> None:
    assert {path.stem for path in FOLDER.glob("*.yml")} == WARNED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", WARNED)
def test_taken_with_warnings(name: str) -> None:
    spec, cautions = read(name)
    assert cautions == WARNED[name]
    rooted = spec.rooted("/work/jobs")
    assert parse_canonical_document(rooted.to_json()) == rooted


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_line(name: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        read(name)
    assert [str(problem).removeprefix("job.yml:") for problem in caught.value.problems] == REFUSED[name]


def test_what_a_distributed_job_means() -> None:
    spec = read_job("distributed")
    assert spec.demand() == GangDemand(
        per_task=Resources(cpu_milli=4000),
        instance_count=2,
        instance_count_min=2,
        instance_count_max=2,
        processes_per_task=4,
        environment="AzureML-acpt-pytorch-2.2-cuda12.1",
        rendezvous=True,
        pool="gpu-cluster",
    )
    assert spec.rooted("/jobs").resolved_command({"model": "/out/model"}) == (
        "python train.py --epochs 3 --lr 0.001 --data /jobs/images --model /out/model"
    )
    assert spec.tags == {"version": "1.10", "owner": ""}
    assert spec.label == "images-distributed"
    assert spec.rooted("/jobs").code == "/jobs/src"


@pytest.mark.parametrize(("name", "processes"), [("mpi", 4), ("deepspeed", 8), ("ray", 1)])
def test_what_each_launcher_asks_for(name: str, processes: int) -> None:
    """All of them have a rendezvous; a node of Ray is one process, whose workers are Ray's own."""
    spec = read_job(name)
    demand = spec.demand()
    assert (spec.launcher, demand.processes_per_task, demand.rendezvous) == (name, processes, True)
    assert demand.per_task.cpu_milli == processes * 1000


def test_what_everything_means() -> None:
    spec = read_job("everything")
    assert spec.resolved_command({"o": "/o", "p": "/p"}) == (
        "./run.sh 1 text True 0.5 https://host/data.csv /o /p"
    )
    assert spec.resolved_variables({}) == {"DATA": "text", "DEBUG": "1", "RANK": "0"}
    assert spec.effective_priority == 100
    assert (spec.demand().instance_count_max, spec.demand().environment) == (4, "torch-image:7")


def test_what_a_sweep_means() -> None:
    spec = as_sweep(read("sweep_early_stopping")[0].rooted("/jobs"))
    assert spec.label == "lightgbm-iris-sweep-example"
    job = spec.trial_job(4, {"learning_rate": 0.01, "boosting": "dart"})
    assert job.resolved_command({}) == (
        "python main.py --iris-csv /jobs/data/iris.csv --learning-rate 0.01 --boosting dart"
    )
    assert (job.pool, job.limits.timeout, job.demand().environment) == ("cpu-cluster", 1800, "sklearn-1.5")


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("azureml:torch@latest", "torch"),
        ("azureml:torch:3", "torch:3"),
        ("torch-2.13", "torch-2.13"),
        ("azureml://registries/azureml/environments/sklearn/versions/4", "sklearn:4"),
        ("azureml:/subscriptions/s/resourceGroups/g/providers/p/environments/torch/versions/2", "torch:2"),
        ("", ""),
        ("null", ""),
        ("{}", ""),
        ("{name: torch, version: 3}", "torch:3"),
        ("/opt/venv", ""),
        ("{requirements: [numpy]}", ""),
        ("{image: 'nvcr.io/nvidia/pytorch:26.01-py3'}", "nvcr.io/nvidia/pytorch:26.01-py3"),
    ],
)
def test_what_an_environment_is_looked_up_by(reference: str, key: str) -> None:
    spec, _ = parse_job(f"command: x\nenvironment: {reference}\n", "x")
    assert spec.demand().environment == key


@pytest.mark.parametrize(
    ("inline", "image", "told"),
    [
        ("{image: 'a/b:1'}", "a/b:1", []),
        (
            "{image: 'a/b:1', name: torch, version: 3}",
            "a/b:1",
            ["image: used only where a node has a container engine and maps nothing to 'torch:3'"],
        ),
        (
            "{image: 'a/b:1', conda_file: {dependencies: [pip]}}",
            "",
            [
                "conda_file: nothing is installed; a node must map 'a/b:1' to an interpreter"
                " that has these packages"
            ],
        ),
        (
            "{image: 'a/b:1', build: {path: .}}",
            "",
            ["build: no image is built; a node must map 'a/b:1' to an interpreter"],
        ),
        ("{name: torch}", "", []),
        ("torch", "", []),
    ],
)
def test_which_image_a_node_may_run(inline: str, image: str, told: list[str]) -> None:
    spec, cautions = parse_job(f"command: x\nenvironment: {inline}\n", "x")
    assert spec.demand().image == image
    assert [str(one).partition("environment.")[2] for one in cautions] == told


def test_paths_of_inputs_are_told_to_who_runs_an_image() -> None:
    text = (
        "command: x\nenvironment: {image: a}\ninputs: {a: {path: /data/a}, b: {path: 'file:///data/b'}, c: 7,"
        " d: {path: 'https://x/y', mode: direct}, e: {path: 'data:3'}}\n"
    )
    spec, _ = parse_job(text, "x")
    assert spec.local_paths() == ["/data/a", "/data/b"]
