"""What pydantic says of a document, as problems with their places and the nearest valid keys."""

from typing import Any

from pydantic import BaseModel, ValidationError

from .by_type import MODELS
from .document import Document
from .keys import nearest_key
from .model import JobSpec
from .parts import TAGS
from .problems import PROBLEMS_MAX, Problem, escaped, nearest, shown

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of sensible size",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "recursion_loop": "plain data",
}


def problems_of(document: Document, error: ValidationError, root: type[BaseModel] = JobSpec) -> list[Problem]:
    """What pydantic found wrong, each with its place; `root` is the model that was validated."""
    return [_problem(document, item, root) for item in error.errors(include_url=False)[:PROBLEMS_MAX]]


def _problem(document: Document, item: Any, root: type[BaseModel]) -> Problem:
    kind, context = item["type"], item.get("ctx", {})
    at_key = item["loc"][-1:] == ("[key]",)
    tagged = tuple(part for part in item["loc"] if part not in TAGS)[: -1 if at_key else None]
    path = tuple(part for part in tagged if part not in MODELS)
    if kind == "paceline":
        return document.problem((*path, *context["at"]), context["text"], at_key=at_key)
    if kind == "extra_forbidden" and path:
        return document.problem(path, "unknown key", at_key=True, nearest=nearest_key(tagged, root))
    if kind == "missing" and path:
        return document.problem(path[:-1], f"required key '{path[-1]}' is missing")
    found = shown(item["input"])
    if kind == "literal_error":
        valid = [word.strip("' ") for word in context["expected"].replace(" or ", ",").split(",")]
        text = f"expected {', '.join(valid)}; found {found}"
        return document.problem(path, text, nearest=nearest(item["input"], valid))
    expected = _EXPECTED.get(kind) or _bound(kind, context)
    if expected:
        if kind == "int_type" and isinstance(item["input"], str) and item["input"].strip("+-").isdecimal():
            expected += " without quotes"
        return document.problem(path, f"expected {expected}; found {found}")
    return document.problem(path, escaped(str(item["msg"]))[:200])


def _bound(kind: str, context: dict[str, Any]) -> str:
    match kind:
        case "greater_than_equal":
            return f"at least {_plainly(context['ge'])}"
        case "greater_than":
            return f"more than {_plainly(context['gt'])}"
        case "less_than_equal":
            return f"at most {_plainly(context['le'])}"
        case "too_long":
            return f"at most {context['max_length']} entries"
        case "too_short":
            return "at least one entry"
        case "less_than":
            return f"less than {_plainly(context['lt'])}"
    return ""


def _plainly(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)
