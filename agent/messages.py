"""What comes in at a shim's socket, checked at the door: a job's own code writes it, so it is not trusted.

What passes has the form that JournalEntry has in proto/v1/agent.proto; unknown fields are left out.
Standard library only.
"""

import json
from typing import Any

from .journal import json_double

LINE_BYTES_MAX = 256 * 1024
_TEXT_CHARS_MAX = 4096
_ITEMS_MAX = 1024
_FORMS: dict[str, dict[str, str]] = {
    "metrics": {"rank": "int", "step": "int", "values": "doubles"},
    "checkpoint": {
        "step": "int",
        "path": "text",
        "manifest_hash": "text",
        "size_bytes": "int",
        "stall_s": "double",
        "metrics": "doubles",
        "removed_steps": "ints",
        "persist_s": "double",
        "why": "text",
        "request": "int",
        "waited_s": "double",
        "image": "text",
    },
    "uploaded": {"step": "int", "path": "text", "url": "text", "seconds": "double", "why": "text"},
    "damaged": {"step": "int", "path": "text", "copy": "text", "why": "text"},
    "checkpoint_failed": {"step": "int", "why": "text", "request": "int"},
    "peer_memory": {
        "rank": "int",
        "node": "text",
        "step": "int",
        "size_bytes": "int",
        "seconds": "double",
        "why": "text",
    },
    "stop_seen": {"step": "int", "left_s": "double"},
    "restored": {"step": "int", "path": "text", "seconds": "double", "rejected": "texts", "tier": "text"},
    "watch": {},
    "inspect": {},
    "save": {"request": "int"},
    "stop": {"grace_s": "double", "why": "text", "keep_s": "double", "mark": "text"},
    "stay": {"rank": "int"},
    "arrived": {},
    "reformed": {"replaced": "ints", "world_size": "int", "step": "int", "seconds": "double"},
    "take": {"folder": "text"},
    "serving": {"url": "text"},
    "trim": {"bytes": "int"},
}


TOLD = frozenset(
    [
        "checkpoint",
        "restored",
        "checkpoint_failed",
        "uploaded",
        "damaged",
        "peer_memory",
        "stop_seen",
        "reformed",
        "serving",
    ]
)
"""What ranks have in the journal, and are answered when it is durable."""


class Invalid(ValueError):
    """The line does not have the form that it must have."""


def checked(line: bytes) -> tuple[str, dict[str, Any]]:
    """(op, fields) of a request line. Missing fields are left out, as protobuf does. Raises Invalid."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"not JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise Invalid('expected an object with "op"')
    form = _FORMS.get(message["op"])
    if form is None:
        raise Invalid(f"unknown op {message['op'][:40]!r}, expected one of {', '.join(_FORMS)}")
    return message["op"], {
        name: _value(name, kind, message[name]) for name, kind in form.items() if name in message
    }


def _value(name: str, kind: str, value: Any) -> Any:
    if kind == "text":
        if isinstance(value, str):
            return value[:_TEXT_CHARS_MAX].encode("utf-8", "replace").decode()
    elif kind == "int":
        if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
            return value
    elif kind == "double":
        if isinstance(value, int | float) and not isinstance(value, bool):
            return json_double(float(value))
    elif kind == "doubles":
        if isinstance(value, dict) and len(value) <= _ITEMS_MAX:
            return {_value(name, "text", key): _value(name, "double", item) for key, item in value.items()}
    elif isinstance(value, list) and len(value) <= _ITEMS_MAX:
        return [_value(name, kind[:-1], item) for item in value]
    raise Invalid(f"{name}: expected {kind}, found {str(value)[:80]!r}")
