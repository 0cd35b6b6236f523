"""Mappings of several kinds, told apart by their `type`: which models there are, and which one is meant.

Pydantic names the chosen one in the paths of its errors by a tag. No key can look like one, so that
`MODELS` can both take them out of a path and say which keys may stand there.
"""

from collections.abc import Mapping
from typing import Any, Final, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .fields import refusal
from .parts import Model
from .problems import nearest, shown

MODELS: Final[dict[str, type[Model]]] = {}
"""Every alternative by its tag."""


class ByType:
    """What a field is annotated with: the models, each with a Literal as its `type`."""

    def __init__(
        self,
        *models: type[Model],
        words: Mapping[str, str] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        """`words`: types that stand for another one; `refused`: what to say of others that people may try."""
        self._tags = {kind: f"\0{model.__name__}" for model in models for kind in types_of(model)}
        self._models = {self._tags[kind]: model for model in models for kind in types_of(model)}
        self._words = dict(words or {})
        self._refused = dict(refused or {})
        MODELS.update(self._models)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {tag: handler.generate_schema(model) for tag, model in self._models.items()}
        union = core_schema.tagged_union_schema(choices, discriminator=self._tag)
        return core_schema.no_info_before_validator_function(self._known, union)

    def _tag(self, value: Any) -> str:
        return self._tags[value["type"] if isinstance(value, dict) else value.type]

    def _known(self, value: Any) -> Any:
        if isinstance(value, tuple(self._models.values())):
            return value
        if not isinstance(value, dict):
            raise refusal(f"expected a mapping; found {shown(value)}")
        if "type" not in value:
            raise refusal("required key 'type' is missing")
        kind = value["type"]
        word = kind.lower() if isinstance(kind, str) else ""
        word = self._words.get(word, word)
        if word in self._tags:
            return value | {"type": word}
        valid = tuple(dict.fromkeys((*self._tags, *self._words)))
        expected = f"expected {', '.join(valid)}"
        if word in self._refused:
            raise refusal(f"{self._refused[word]}; {expected}", "type")
        guess = nearest(kind, valid)
        raise refusal(
            f"{expected}; found {shown(kind)}" + (f"; did you mean '{guess}'?" if guess else ""), "type"
        )


def types_of(model: type[Model]) -> tuple[str, ...]:
    """The words that a model's `type` may be."""
    return get_args(model.model_fields["type"].annotation)


def as_type(value: Any) -> Any:
    """A word that stands for a mapping with nothing but its type."""
    return {"type": value} if isinstance(value, str) else value
