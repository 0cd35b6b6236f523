"""The scheduler's services over one channel; each is imported when it is first used."""

from importlib import import_module
from typing import Any, Final

_SERVICES: Final = {
    "answers": ("generated.answers_pb2_grpc", "AnswersStub"),
    "content": ("generated.content_pb2_grpc", "ContentStub"),
    "endpoints": ("generated.endpoints_pb2_grpc", "EndpointsStub"),
    "jobs": ("generated.jobs_pb2_grpc", "JobsStub"),
    "logs": ("payload", "LogsStub"),
    "nodes": ("generated.nodes_pb2_grpc", "NodesStub"),
    "policy": ("generated.policy_pb2_grpc", "PolicyStub"),
    "registry": ("generated.registry_pb2_grpc", "RegistryStub"),
    "sweeps": ("generated.sweeps_pb2_grpc", "SweepsStub"),
}
"""Attribute -> module of proto, and the stub in it."""


class Stubs:
    """A service is an attribute; a blocking and an asyncio channel are used alike."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        """Of the first use; later ones find it."""
        if name not in _SERVICES:
            raise AttributeError(name)
        module, stub = _SERVICES[name]
        found = getattr(import_module(f"..proto.{module}", __package__), stub)(self._channel)
        setattr(self, name, found)
        return found
