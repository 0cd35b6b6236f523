"""Labels and taints of nodes: what a key and a value may be. Their meaning is placement's.

A label says what a node is or where it stands (`rack=r3`). A taint keeps jobs away that do not tolerate it.
"""

import re
from collections.abc import Mapping
from typing import Final

LABELS_MAX: Final = 64
"""Of labels on a node, and of taints."""
KEY_CHARS_MAX: Final = 63
VALUE_CHARS_MAX: Final = 100
KEY_RULE: Final = f"letters, digits and ._/- (at most {KEY_CHARS_MAX}), a letter or digit first"
VALUE_RULE: Final = f"1 to {VALUE_CHARS_MAX} printable characters"

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def is_value(text: str) -> bool:
    return 0 < len(text) <= VALUE_CHARS_MAX and text.isprintable()


def fault_in_labels(labels: Mapping[str, str]) -> str:
    """What is wrong with a node's labels, for a person; empty: nothing."""
    if len(labels) > LABELS_MAX:
        return f"{len(labels)} labels are too many: a node has at most {LABELS_MAX}"
    for key, value in labels.items():
        if not is_key(key):
            return f"label {key[:100]!r} is not a label: {KEY_RULE} are expected"
        if not is_value(value):
            return f"label {key} {value[:VALUE_CHARS_MAX]!r} must be {VALUE_RULE}"
    return ""


def fault_in_taints(taints: Mapping[str, str]) -> str:
    """What is wrong with a node's taints, for a person; empty: nothing. A taint may be without a value."""
    if len(taints) > LABELS_MAX:
        return f"{len(taints)} taints are too many: a node has at most {LABELS_MAX}"
    for key, value in taints.items():
        if not is_key(key):
            return f"taint {key[:100]!r} is not a taint: {KEY_RULE} are expected"
        if value and not is_value(value):
            return f"taint {key} {value[:VALUE_CHARS_MAX]!r} must be {VALUE_RULE}"
    return ""
