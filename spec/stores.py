"""Places beside the job's folder where checkpoints are kept: URLs, and what opens them.

Pure: the scheduler refuses a URL that nothing here opens; a job's own interpreter is asked for the package.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Opener:
    """The package that speaks a scheme, and our extra that installs it; empty: none is needed."""

    package: str = ""
    extra: str = ""


_OPENERS: Final = {
    "file": Opener(),
    "s3": Opener("s3fs", "s3"),
    "gs": Opener("gcsfs", "gs"),
    "gcs": Opener("gcsfs", "gs"),
    "abfs": Opener("adlfs", "abfs"),
    "abfss": Opener("adlfs", "abfs"),
    "az": Opener("adlfs", "abfs"),
}
SCHEMES: Final = tuple(_OPENERS)
EXPECTED: Final = f"expected a URL like s3://bucket/prefix ({', '.join(SCHEMES)}) or an absolute path"


def scheme_of(url: str) -> str:
    """`file` for an absolute path; empty for what is neither that nor a URL with a place in it."""
    if url.startswith("/"):
        return "file"
    scheme, found, rest = url.partition("://")
    whole = rest.startswith("/") if scheme == "file" else bool(rest.strip("/"))
    return scheme if found and whole else ""


def opener_of(url: str) -> Opener | None:
    """None: nothing here opens it."""
    return _OPENERS.get(scheme_of(url))
