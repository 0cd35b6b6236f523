"""Makes scheduler/store/compiled.py from the statements in SQLAlchemy Core beside it.

With --check: says whether the committed file is fresh.
"""

import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

from paceline.scheduler.store.statements import compiled_ahead

TARGET = Path(__file__).parents[1] / "scheduler" / "store" / "compiled.py"
HEAD = '''"""Made by scripts/statements.py from statements.py; do not edit."""

from typing import Final

from .ahead import Ahead
'''


def main() -> int:
    made = HEAD + assigned("SQLITE", "sqlite") + assigned("POSTGRES", "postgresql")
    if "--check" not in sys.argv:
        TARGET.write_text(made)
    elif not TARGET.exists() or TARGET.read_text() != made:
        print(f"{TARGET} is stale: run make statements")
        return 1
    return 0


def assigned(name: str, database: str) -> str:
    fields = "".join(
        f"    {field}={literal(text)},\n" for field, text in asdict(compiled_ahead(database)).items()
    )
    return f"\n{name}: Final = Ahead(\n{fields})\n"


def literal(text: str) -> str:
    lines = textwrap.wrap(text, 90, drop_whitespace=False, break_long_words=False, break_on_hyphens=False)
    return "(\n" + "".join(f"        {line!r}\n" for line in lines) + "    )"


if __name__ == "__main__":
    sys.exit(main())
