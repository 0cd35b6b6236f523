"""Ray Serve: a model in replicas that Ray places, behind our own front.

With framework `ray`, the folder's entry is a Serve application, whose ingress takes a dict of arrays and
returns one. Any other folder is loaded by its own engine in each replica: one for each GPU of the cluster, or
else one for each node. The cluster is that of RAY_ADDRESS (a job with `distribution: {type: ray}`), or else
one of our own, which ends with this process. Ray's own HTTP proxy is not started: the protocol is ours.
https://docs.ray.io/en/latest/serve/index.html
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ...spec.errors import InvalidRequest, PacelineError
from ...spec.model_signature import parse_signature
from ..folder import choose_engine, read_folder
from .base import Answer, Array, Arrays, Folder, Loaded, engine
from .entries import import_entry

AT_ONCE: Final = 64
ANSWER_S_MAX: Final = 600.0
_NAME: Final = "paceline"
_ADDRESS: Final = "RAY_ADDRESS"


def load(folder: Folder) -> Loaded:
    """Start Ray, or join the job's, and deploy. Raises InvalidRequest; what Ray raises goes through."""
    close = _start(folder.path)
    try:
        return _deploy(folder, close)
    except BaseException:
        close()
        raise


class Replica:
    """A folder loaded by its own engine, in a process of Ray's."""

    def __init__(self, folder: str) -> None:
        found = read_folder(Path(folder))
        self._loaded = engine(choose_engine(found)[0]).load(found)

    def __call__(self, inputs: Arrays) -> Arrays:
        assert self._loaded.infer is not None
        return self._loaded.infer(inputs)

    def post(self, path: str, body: bytes, kind: str) -> Answer:
        """One of the engine's own routes."""
        return self._loaded.posts[path](body, kind)

    def about(self) -> dict[str, Any]:
        """What the front needs to know."""
        signature = self._loaded.signature
        return {
            "platform": self._loaded.platform,
            "signature": signature.to_json() if signature else "",
            "tensors": self._loaded.infer is not None,
            "posts": list(self._loaded.posts),
            "gets": dict(self._loaded.gets),
        }


def _start(folder: Path) -> Callable[[], None]:
    """Connect; what is returned undoes it. Ray is imported here first: it reads its token at the import."""
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    environment = {"env_vars": {"PYTHONPATH": paths}}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if _ADDRESS not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    if _ADDRESS in os.environ:
        ray.init(address=os.environ[_ADDRESS], runtime_env=environment, configure_logging=False)
        return _leave
    files = tempfile.mkdtemp(prefix="pace-", dir="/tmp")  # short: the paths of Ray's sockets have a bound

    def close() -> None:
        _leave()
        shutil.rmtree(files, ignore_errors=True)

    try:
        ray.init(
            address="local",
            include_dashboard=False,
            runtime_env=environment,
            configure_logging=False,
            _temp_dir=files,
        )
    except BaseException:
        close()
        raise
    return close


def _leave() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()


def _deploy(folder: Folder, close: Callable[[], None]) -> Loaded:
    import ray
    from ray import serve

    serve.start(proxy_location="Disabled")
    signature = folder.signature
    if signature is not None and signature.framework == "ray":
        application = import_entry(folder.path, signature.entry)
        handle = serve.run(application, name=_NAME, route_prefix=None)
        return Loaded("ray_serve", signature, _inference(handle), at_once=AT_ONCE, close=close)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    replicas = gpus or sum(node["Alive"] for node in ray.nodes())
    options = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    deployment = serve.deployment(Replica).options(num_replicas=replicas, ray_actor_options=options)
    handle = serve.run(deployment.bind(str(folder.path)), name=_NAME, route_prefix=None)
    about = _result(handle.about.remote())
    return Loaded(
        platform=f"ray_serve_{about['platform']}",
        signature=parse_signature(about["signature"]) if about["signature"] else None,
        infer=_inference(handle) if about["tensors"] else None,
        posts={path: _post(handle, path) for path in about["posts"]},
        gets=about["gets"],
        at_once=AT_ONCE,
        close=close,
    )


def _inference(handle: Any) -> Callable[[Arrays], Arrays]:
    def infer(inputs: Arrays) -> Arrays:
        made = _result(handle.remote(inputs))
        if not isinstance(made, Mapping):
            raise InvalidRequest(f"the application gave {type(made).__name__}; expected a dict of arrays")
        return {str(name): _own(array) for name, array in made.items()}

    return infer


def _post(handle: Any, path: str) -> Callable[[bytes, str], Answer]:
    def post(body: bytes, kind: str) -> Answer:
        answer: Answer = _result(handle.post.remote(path, body, kind))
        return answer

    return post


def _result(response: Any) -> Any:
    """What a replica made. An error of ours comes out as itself."""
    from ray.exceptions import RayTaskError

    try:
        return response.result(timeout_s=ANSWER_S_MAX)
    except RayTaskError as error:
        if isinstance(error.cause, PacelineError):
            raise error.cause from error
        raise


def _own(array: Array) -> Array:
    """Ray's arrays are read-only views of its store."""
    return array.copy()
