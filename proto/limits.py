"""The bounds of the wire, in one place: both sides keep them, and the receiving side checks them."""

from typing import Final

MESSAGE_BYTES_MAX: Final = 16 << 20
METADATA_BYTES_MAX: Final = 64 << 10

SUBMIT_JOBS_MAX: Final = 1000
DOCUMENT_BYTES_MAX: Final = 1 << 20
KEY_PATTERN: Final = r"[A-Za-z0-9_-]{1,64}"
NAME_CHARACTERS_MAX: Final = 200
NODE_WHY_CHARACTERS_MAX: Final = 500
"""Of the reason for which a node is taken out of service, or a job held."""

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 8 << 20

CHUNK_BYTES_MAX: Final = 1 << 20
CHUNK_BYTES_FIRST: Final = 128 << 10
"""Of a connection; each later one may hold twice as much: where a link breaks often, some arrive whole."""
PIECES_MAX: Final = 1000
REPORTS_MAX: Final = 1000
REPORTS_BYTES_MAX: Final = 1 << 20
STARTS_MAX: Final = 100
STARTS_BYTES_MAX: Final = 1 << 20
"""Of the starts that go to an agent in one message; a single one may be longer."""
TASKS_PER_NODE_MAX: Final = 10_000

ERROR_TEXT_BYTES_MAX: Final = 8000
"""Of an error's message; the wire may need three bytes for one."""
ERROR_DETAILS_BYTES_MAX: Final = 4096

UNARY_DEADLINE_S: Final = 30.0
"""What a call without streams may take when its caller names no deadline."""

CONTENT_HASHES_MAX: Final = 100_000
CONTENT_PIECES_MAX: Final = 10_000
CONTENT_PUT_BYTES_MAX: Final = 4 << 20
"""Of data in one Put."""

STUDY_NAME_CHARACTERS_MAX: Final = 512
"""Of a study, a param, or an attribute's key."""
OBJECTIVES_MAX: Final = 100
OPS_MAX: Final = 1000
ATTRS_MAX: Final = 1000
"""Of each kind, of a study or a trial; and params of a trial."""
ATTRS_BYTES_MAX: Final = 1 << 20
"""Of all attributes of a study; of all attributes and distributions of a trial."""
DISTRIBUTION_BYTES_MAX: Final = 64 << 10
TRIAL_VALUES_MAX: Final = 100_000
"""Intermediate values of a trial."""
TRIALS_PER_STUDY_MAX: Final = 1_000_000
"""A trial's id in Optuna is its study's number times this, and its own."""
TRIALS_PAGE_MAX: Final = 200
TRIALS_PAGE_BYTES: Final = 1 << 20
"""A reply is cut off behind the trial with which it has become larger."""
