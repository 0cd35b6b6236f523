"""One inference, from the request's body to the response's. Runs in a thread of the model's."""

from ..spec.errors import InvalidRequest
from .engines.base import Answer, Arrays, Loaded
from .tensors import InferRequest, checked_inputs, checked_outputs, read_request, write_response


def infer(loaded: Loaded, name: str, version: str, body: bytes) -> Answer:
    """Raises InvalidRequest for what does not fit the signature."""
    request = read_request(body)
    return Answer(write_response(name, version, request.id, outputs_of(loaded, name, request)))


def outputs_of(loaded: Loaded, name: str, request: InferRequest) -> Arrays:
    """The outputs that were asked for. Raises InvalidRequest for what does not fit the signature."""
    if loaded.infer is None or loaded.signature is None:
        ways = ", ".join(f"POST {path}" for path in loaded.posts)
        raise InvalidRequest(f"model {name} has no signature of tensors: use {ways}")
    made = loaded.infer(checked_inputs(request, loaded.signature.inputs))
    return {key: made[key] for key in checked_outputs(request, list(made))}
