"""Times of reasons, on this machine's clock."""

from .. import views
from . import output as out


def at_clock(reason: views.Reason) -> str:
    """` [14:20, 13:50 to 16:05]`: of a reason that has times."""
    at = next((reason.fields[key] for key in ("start_us", "end_us") if key in reason.fields), "")
    if not at.isdigit():
        return ""
    early, late = (_clock(reason.fields.get(key, ""), at) for key in ("early_us", "late_us"))
    return f" [{_clock(at, '')}, {early} to {late}]"


def _clock(us: str, beside: str) -> str:
    """With the date, where the day is not that of `beside` (or today)."""
    if not us.isdigit() or us == "0":
        return "later"
    text, other = out.clock(int(us)), out.clock(int(beside) if beside else out.now_us())
    return text[11:16] if text[:10] == other[:10] else text[:16]
