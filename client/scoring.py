"""`pace score`: the job that has a model answer all rows of some data."""

from typing import Any


def scoring_job(
    model: str, data: str, name: str, *, instances: int = 1, engine: str = "auto", gpus: float = 0
) -> dict[str, Any]:
    """As in a job file. `model` and `data`: references, or paths that every node sees; `name`: under which
    the answers are registered, as data."""
    return {
        "type": "command",
        "display_name": f"score {model} on {data}",
        "command": f"python -m paceline.serving.scoring --engine {engine} --model ${{{{inputs.model}}}}"
        " --data ${{inputs.data}} --output ${{outputs.predictions}}",
        "inputs": {
            "model": {"type": "custom_model", "path": model},
            "data": {"type": "uri_folder", "path": data},
        },
        "outputs": {"predictions": {"type": "uri_folder", "name": name}},
        "distribution": {"type": "mpi", "process_count_per_instance": 1},
        "resources": {
            "instance_count": instances,
            "min_instance_count": 1,
            **({"gpus": gpus} if gpus else {}),
        },
        "limits": {"hang_timeout": "off"},
    }
