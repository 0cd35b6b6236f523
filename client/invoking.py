"""A request to an endpoint over HTTP, as `pace invoke` makes it."""

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from ..spec.errors import Conflict, InvalidRequest, Unavailable
from .endpoint_views import Endpoint

ANSWER_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    deployment: str
    """That answered."""
    content_type: str
    body: bytes


def path_for(endpoint: str, body: bytes) -> str:
    """The Open Inference Protocol's where the body is of its form, else that of score.py."""
    try:
        data = json.loads(body)
    except ValueError:
        return "/score"
    return f"/v2/models/{quote(endpoint)}/infer" if _is_inference(data) else "/score"


def invoke(
    endpoint: Endpoint, body: bytes, *, path: str = "", deployment: str = "", timeout_s: float = 60.0
) -> Answer:
    """Send it; whatever comes back. Raises Conflict while no router answers, Unavailable when it does not,
    InvalidRequest for a path that is none."""
    if not endpoint.url:
        raise Conflict(
            f"endpoint {endpoint.endpoint} does not answer: its router is job {endpoint.router_job or '-'}",
            hint=f"`pace endpoints {endpoint.endpoint}` shows how far it is",
        )
    path = path or path_for(endpoint.endpoint, body)
    if not path.startswith("/") or not path.isprintable() or " " in path:
        raise InvalidRequest(f"{path[:200]!r} is not the path of a URL", hint="such as /score")
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    if deployment:
        headers["paceline-deployment"] = deployment
    request = urllib.request.Request(endpoint.url + path, data=body, headers=headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            return _answer(reply)
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise Unavailable(f"{endpoint.url} does not answer: {why}", hint="try again in a moment") from error


def _answer(reply: Any) -> Answer:
    headers = reply.headers
    return Answer(
        reply.status,
        headers.get("paceline-deployment", ""),
        headers.get("Content-Type", ""),
        reply.read(ANSWER_BYTES_MAX),
    )


def _is_inference(data: Any) -> bool:
    inputs = data.get("inputs") if isinstance(data, dict) else None
    return isinstance(inputs, list) and all(isinstance(one, dict) and "datatype" in one for one in inputs)
