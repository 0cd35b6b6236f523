"""`python -m paceline.serving.scoring`: a model over all rows of its data, shared by the ranks of a job.

The data's files are cut into parts of about the same size, at line ends; a part's answers are one file, there
at once and whole, in the job's own folder. So whoever comes again, after a fault or with another number of
ranks, goes on with the parts that are not there yet. At the end each rank puts its parts into the output.

A row is a line of JSON. For a model of tensors: its inputs by name, or the one input as it is, without the
batch's dimension; for one with a route of its own (score.py, MLflow): the body of a request. Each answer is
a line, in the order of the rows.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ..spec.errors import InvalidRequest, PacelineError
from ..spec.model_signature import Tensor
from .engines.base import ENGINES, Loaded, engine
from .folder import choose_engine, read_folder
from .tensors import GivenTensor, InferRequest, checked_inputs

PART_BYTES: Final = 4 << 20
BATCH_ROWS: Final = 64
SUFFIXES: Final = (".jsonl", ".ndjson")
TELL_S: Final = 10.0
_LOG: Final = logging.getLogger("paceline.serving")

Answerer = Callable[[Sequence[bytes]], list[bytes]]
"""Rows in, a line for each out. Raises InvalidRequest for a row that does not fit."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a file that begin in [`start`, `end`), in bytes."""

    file: Path
    start: int
    end: int
    name: str
    """Of its answers' file; parts of one file sort as they stand in it."""


def parts_of(data: Path, part_bytes: int = PART_BYTES) -> list[Part]:
    """All parts, in an order that depends on the data alone. Raises InvalidRequest where there is nothing to
    score."""
    if data.is_file():
        files = [data]
    else:
        files = sorted(one for one in data.rglob("*") if one.suffix in SUFFIXES and one.is_file())
    if not files:
        raise InvalidRequest(
            f"{data} has no rows", hint=f"expected files of JSON lines: {', '.join(SUFFIXES)}"
        )
    parts = []
    for file in files:
        size = file.stat().st_size
        below = file.name if data.is_file() else str(file.relative_to(data))
        stem = below.replace("/", "--")
        for number, start in enumerate(range(0, size, part_bytes)):
            name = f"{stem}.{number:06d}.jsonl"
            parts.append(Part(file, start, min(start + part_bytes, size), name))
    return parts


def rows_of(part: Part) -> Iterator[tuple[int, bytes]]:
    """Where each row begins, and its text; empty lines are none."""
    with part.file.open("rb") as file:
        if part.start:
            file.seek(part.start - 1)
            file.readline()  # the rest of a row of the part before, or just the end of its last line
        at = file.tell()
        while at < part.end and (line := file.readline()):
            if line.strip():
                yield at, line
            at += len(line)


def answerer(loaded: Loaded) -> Answerer:
    """How a model answers rows. Raises InvalidRequest for one that takes neither tensors nor requests."""
    if loaded.infer is not None and loaded.signature is not None:
        return _by_tensors(loaded, loaded.signature.inputs)
    if len(loaded.posts) != 1:
        raise InvalidRequest(
            f"the model takes no rows: it has no signature of tensors, and {len(loaded.posts)} routes"
        )
    ((route, post),) = loaded.posts.items()

    def answer(rows: Sequence[bytes]) -> list[bytes]:
        made = []
        for row in rows:
            told = post(row, "application/json")
            if told.status >= 400:
                raise InvalidRequest(
                    f"{route} answers {told.status}: {told.body[:500].decode(errors='replace')}"
                )
            made.append(told.body.replace(b"\n", b" ").strip())
        return made

    return answer


def _by_tensors(loaded: Loaded, inputs: Sequence[Tensor]) -> Answerer:
    batched = all(one.shape and one.shape[0] == -1 for one in inputs)

    def answer(rows: Sequence[bytes]) -> list[bytes]:
        if not batched:
            return [
                line
                for row in rows
                for line in _answers(loaded, inputs, [_values(row, inputs)], batched=False)
            ]
        return _answers(loaded, inputs, [_values(row, inputs) for row in rows], batched=True)

    return answer


def _values(row: bytes, inputs: Sequence[Tensor]) -> Mapping[str, Any]:
    try:
        read = msgspec.json.decode(row)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"expected a line of JSON; {error}") from error
    names = {one.name for one in inputs}
    if isinstance(read, dict) and set(read) == names:
        return read
    if len(inputs) == 1 and not isinstance(read, dict):
        return {inputs[0].name: read}
    raise InvalidRequest(f"expected the inputs {', '.join(sorted(names))} by name")


def _answers(
    loaded: Loaded, inputs: Sequence[Tensor], rows: Sequence[Mapping[str, Any]], *, batched: bool
) -> list[bytes]:
    assert loaded.infer is not None
    given = []
    for one in inputs:
        data = [row[one.name] for row in rows] if batched else rows[0][one.name]
        shape = [len(rows), *_shape(data[0])] if batched else _shape(data)
        given.append(GivenTensor(one.name, shape, one.datatype, data))
    made = loaded.infer(checked_inputs(InferRequest(given), inputs))
    if not batched:
        return [msgspec.json.encode({name: array.tolist() for name, array in made.items()}, enc_hook=str)]
    return [
        msgspec.json.encode({name: array[at].tolist() for name, array in made.items()}, enc_hook=str)
        for at in range(len(rows))
    ]


def _shape(value: Any) -> list[int]:
    return [len(value), *(_shape(value[0]) if value else ())] if isinstance(value, list) else []


def score(part: Part, answer: Answerer, into: Path) -> int:
    """How many rows. The file is there at once and whole. Raises InvalidRequest with the place."""
    aside = into.with_name(f".{into.name}.{os.getpid()}")
    count = 0
    try:
        with aside.open("wb") as file:
            for batch in _batches(rows_of(part)):
                for line in _placed(part, batch, answer):
                    file.write(line + b"\n")
                count += len(batch)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(into)
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()
    return count


def _placed(part: Part, batch: Sequence[tuple[int, bytes]], answer: Answerer) -> list[bytes]:
    """Where a batch does not fit, row by row, so that the bad one is named."""
    try:
        return answer([row for _, row in batch])
    except InvalidRequest:
        for at, row in batch:
            try:
                answer([row])
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"{part.file} at byte {at}: {error.message}",
                    hint=f"the row: {row[:200].decode(errors='replace')}",
                ) from error
        raise


def _batches(rows: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def run(args: argparse.Namespace, rank: int, world: int) -> None:
    """This rank's share. Raises PacelineError."""
    work = Path(os.environ.get("PACELINE_JOB_FOLDER", args.output)) / "scored"
    work.mkdir(parents=True, exist_ok=True)
    mine = parts_of(Path(args.data))[rank::world]
    missing = [part for part in mine if not (work / part.name).exists()]
    _LOG.info("rank %d of %d: %d parts, %d of them to be scored", rank, world, len(mine), len(missing))
    if missing:
        folder = read_folder(Path(args.model))
        name = choose_engine(folder)[0] if args.engine == "auto" else args.engine
        loaded = engine(name).load(folder)
        answer, rows, told_s = answerer(loaded), 0, time.monotonic()
        for number, part in enumerate(missing, 1):
            rows += score(part, answer, work / part.name)
            if time.monotonic() - told_s > TELL_S or number == len(missing):
                told_s = time.monotonic()
                _LOG.info("rank %d: %d of %d parts, %d rows", rank, number, len(missing), rows)
        loaded.close()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for part in mine:
        _give(work / part.name, output / part.name)


def _give(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="paceline.serving.scoring", description="Score a folder of rows.")
    parser.add_argument("--engine", choices=["auto", *ENGINES], default="auto")
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a file of JSON lines, or a folder of them"
    )
    parser.add_argument("--output", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    world = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    try:
        run(args, rank, world)
    except PacelineError as error:
        _LOG.error("%s%s", error.message, f" ({error.hint})" if error.hint else "")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
