"""Plain data -> YAML text that document.py reads back as the same data."""

from typing import Any, Final

import yaml

from .yaml_scalars import plain_scalar

_LINE_CHARS: Final = 100


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value and value.isascii() else None
    try:
        if plain_scalar(value) != value:
            style = "'"
    except ValueError:
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(data: Any) -> str:
    """YAML text of mappings, lists and scalars, in the order given."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_LINE_CHARS)
    return text
