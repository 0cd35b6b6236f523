"""What a job is told by us: one line on stderr, where the job's own output goes, marked as ours."""

import sys


def say(text: str) -> None:
    """Write one line to stderr. A closed stderr is the script's business, never a reason to die."""
    line = f"paceline: {text}\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, detached, or None under pythonw-like hosts
        return
