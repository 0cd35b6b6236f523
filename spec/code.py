"""Where a job's code stood in git when it was packed.

As in parts.py, every field's docstring becomes its description in the JSON Schema.
"""

from pydantic import Field

from .fields import Line, TreeId
from .parts import Model


class CodeGit(Model):
    """Of the repository in which the folder is. All of it is information: the tree holds the files."""

    remote: Line = ""
    """URL of the branch's remote, or of `origin`, without a password; empty: none."""
    branch: Line = ""
    """Empty: none is checked out."""
    commit: Line = ""
    """Hash; empty: there is none yet."""
    dirty: bool = Field(default=False, strict=True)
    """What was packed differs from that commit, or git does not know all of it."""
    diff: TreeId | None = None
    """Hash of the uncommitted diff against the commit, kept as the tree's files are; absent: none."""
    diff_left_out: Line = ""
    """Why the diff is not kept although there is one; empty: it is."""
