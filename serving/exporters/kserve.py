"""A KServe InferenceService, by what the model is.

MLflow folders and Hugging Face folders have runtimes of their own there; TorchScript has Triton, for which
the model repository is written beside; anything else is served by our own server, in an image that has it.
KServe fetches the model from the storage URI: put it there.
https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/overview
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from ...spec.errors import InvalidRequest
from ...spec.problems import shown
from ..folder import choose_engine
from . import triton
from .base import Exported, Wish
from .vllm import is_hugging_face

FILE: Final = "inferenceservice.yaml"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_PORT: Final = 8080
_MOUNTED: Final = "/mnt/models"


def export(wish: Wish) -> Exported:
    """Write the service. Raises InvalidRequest for a name that Kubernetes refuses, or what is missing."""
    if not _NAME.match(wish.name):
        raise InvalidRequest(
            f"expected a name of at most 63 lower-case letters, digits and '-'; found {shown(wish.name)}"
        )
    if not wish.storage_uri:
        raise InvalidRequest(
            "KServe fetches the model itself: it needs the URI where it will lie",
            hint="--storage-uri s3://BUCKET/PATH, gs://..., pvc://CLAIM/PATH, https://...",
        )
    files: list[Path] = []
    then = f"put {wish.folder.path} at {wish.storage_uri}"
    signature = wish.folder.signature
    if is_hugging_face(wish.folder.path):
        predictor = _runtime(wish, "huggingface", args=[f"--model_name={wish.name}"])
    elif signature is None and choose_engine(wish.folder)[0] == "mlflow":
        predictor = _runtime(wish, "mlflow", protocolVersion="v2")
    elif signature is not None and signature.framework == "torchscript":
        repository = wish.into / "repository"
        files += triton.export(replace(wish, into=repository)).files
        predictor = _runtime(wish, "triton", protocolVersion="v2")
        then = f"put {repository} at {wish.storage_uri}"
    else:
        predictor = _own(wish)
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": wish.name},
        "spec": {"predictor": predictor},
    }
    wish.into.mkdir(parents=True, exist_ok=True)
    path = wish.into / FILE
    path.write_text(yaml.safe_dump(service, sort_keys=False))
    return Exported((*files, path), (then, f"kubectl apply -f {path}"))


def _runtime(wish: Wish, model_format: str, **more: Any) -> dict[str, Any]:
    return {"model": {"modelFormat": {"name": model_format}, "storageUri": wish.storage_uri, **more}}


def _own(wish: Wish) -> dict[str, Any]:
    """Our own server; KServe's storage initializer mounts the model because of STORAGE_URI."""
    if not wish.image:
        raise InvalidRequest(
            f"{wish.folder.path}: KServe has no runtime for it; our own server needs an image with paceline",
            hint="--image REGISTRY/NAME:TAG",
        )
    server = ["python", "-m", "paceline.serving.server", "--host", "0.0.0.0", "--port", str(_PORT)]
    container = {
        "name": "kserve-container",
        "image": wish.image,
        "command": [*server, "--model", _MOUNTED, "--name", wish.name],
        "env": [{"name": "STORAGE_URI", "value": wish.storage_uri}],
        "ports": [{"containerPort": _PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": _PORT}},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": _PORT}},
    }
    return {"containers": [container]}
