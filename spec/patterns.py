"""Regular expressions that find a metric in a line of output.

Here is said what may be asked for; agents match, with bounds on the line and on time (agent/printed.py).
"""

import re
from typing import Annotated, Final

from pydantic import AfterValidator

from .fields import refusal

PATTERN_CHARS_MAX: Final = 500
PATTERNS_MAX: Final = 16


def _pattern(value: str) -> str:
    if len(value) > PATTERN_CHARS_MAX:
        raise refusal(f"expected at most {PATTERN_CHARS_MAX} characters; found {len(value)}")
    try:
        groups = re.compile(value).groupindex
    except re.error as error:
        at = "" if error.pos is None else f" at character {error.pos + 1}"
        raise refusal(f"not a regular expression: {error.msg}{at}") from None
    except (OverflowError, RecursionError):
        raise refusal("not a regular expression that can be matched: too deep, or too many repeats") from None
    if "value" not in groups:
        raise refusal(r"expected a group named value, as in loss=(?P<value>\S+)")
    return value


MetricPattern = Annotated[str, AfterValidator(_pattern)]
