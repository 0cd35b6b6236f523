"""Inputs at a URL: looked at when a job is submitted, so that it reads what was there then, or not at all.

Whoever submits looks, with credentials of their own; the scheduler opens no URL, and nodes compare.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..spec.errors import PacelineError
from ..spec.parts import DataInput, Pinned
from ..spec.stores import Seen
from .documents import Prepared


def looked(prepared: Sequence[Prepared]) -> list[Prepared]:
    """The same, with what is at their URLs now; each is looked at once. What a job before this one saw stays.
    Raises UrlRefused, UrlAway, naming the input."""
    known: dict[str, Seen] = {}
    return [
        _looked(one, known) if any(map(_is_unseen, one.spec.inputs.values())) else one for one in prepared
    ]


def seen(url: str) -> Seen:
    """What is there now. Raises UrlRefused, UrlAway."""
    from ..content.urls import look

    return look(url)


def _is_unseen(value: Any) -> bool:
    return (
        isinstance(value, DataInput)
        and value.is_url
        and (value.pinned is None or value.pinned.url != value.path)
    )


def _looked(one: Prepared, known: dict[str, Seen]) -> Prepared:
    inputs = dict(one.spec.inputs)
    for name, value in inputs.items():
        if not _is_unseen(value):
            continue
        if value.path not in known:
            known[value.path] = _seen(f"{one.source}: inputs.{name}.path", value.path)
        there = known[value.path]
        pinned = Pinned(url=there.url, etag=there.etag, bytes=there.bytes, files=there.files)
        inputs[name] = value.model_copy(update={"pinned": pinned})
    return replace(one, spec=one.spec.model_copy(update={"inputs": inputs}))


def _seen(place: str, url: str) -> Seen:
    try:
        return seen(url)
    except PacelineError as error:
        hint = f"{error.hint}; or say mode: direct, and the job gets the URL" if error.hint else ""
        raise type(error)(
            f"{place}: {error.message}",
            hint=hint or "it is looked at where you submit; with mode: direct the job gets the URL as text",
        ) from error
