"""The bounded file by its model: a plain bytes object that remembers which bytes are gone."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.proto.logfile import BLOCK_BYTES, LogFile
from paceline.spec.errors import InvalidRequest

BOUND = 16 * BLOCK_BYTES


def read_all(log: LogFile, offset: int = 0, count: int = 1 << 20) -> list[tuple[int, bytes]]:
    pieces = []
    while (piece := log.read(offset, count)).data:
        assert piece.offset - piece.dropped_bytes == offset
        pieces.append((piece.offset, piece.data))
        offset = piece.end
    return pieces


def test_offsets_are_those_of_the_stream(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", bytes_max=BOUND)
    assert log.append(0, b"hello ") == 6
    assert log.append(6, b"world") == 11
    assert log.append(3, b"lo wor") == 11  # again
    assert log.append(8, b"rld!\n") == 13  # overlapping
    assert read_all(log) == [(0, b"hello world!\n")]
    assert log.read(6, 3) == log.read_cached(6, 3)
    assert log.read(100, 5).data == b""
    log.close()


def test_it_goes_on_where_it_stood_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = os.urandom(3 * BOUND)
    for at in range(0, len(data), 10_000):
        log = LogFile(path, bytes_max=BOUND)
        assert log.size == at
        log.append(at, data[at : at + 10_000])
        log.close()
    log = LogFile(path, bytes_max=BOUND)
    [(start, kept)] = read_all(log)
    assert start == log.start and kept == data[start:]
    assert BOUND * 14 // 16 <= len(kept) <= BOUND + 10_000
    log.close()


def test_the_head_gives_its_blocks_back(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", bytes_max=BOUND)
    for at in range(0, 64 * BOUND, BOUND // 4):
        log.append(at, os.urandom(BOUND // 4))
    stat = (tmp_path / "log").stat()
    assert stat.st_size == 64 * BOUND
    assert stat.st_blocks * 512 <= 2 * BOUND
    log.close()


def test_zeros_that_were_written_are_data(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", bytes_max=BOUND)
    log.append(0, bytes(2 * BLOCK_BYTES))
    log.append(5 * BLOCK_BYTES + 7, b"x")
    assert read_all(log) == [(0, bytes(2 * BLOCK_BYTES)), (5 * BLOCK_BYTES + 7, b"x")]
    log.close()


def test_a_gap_that_was_noted_before_a_crash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(path, bytes_max=BOUND)
    log.append(0, b"abc")
    log.close()
    (tmp_path / "log.gaps").write_text("3 1000\n")  # written down, and then killed before a byte came
    log = LogFile(path, bytes_max=BOUND)
    assert log.size == 1000
    log.append(1000, b"def")
    assert read_all(log) == [(0, b"abc"), (1000, b"def")]
    log.close()


def test_a_bound_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        LogFile(tmp_path / "log", bytes_max=100)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-9000, 9000), st.integers(0, 20_000)), max_size=40),
    st.integers(0, 1 << 30),
)
def test_any_order_of_appends_reads_back_as_the_model_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    source = random.Random(seed).randbytes(1 << 21)
    log = LogFile(folder / "log", bytes_max=BOUND)
    there = bytearray()  # 1 where a byte was written
    for jump, length in steps:
        offset = max(0, log.size + jump)
        end = offset + length
        if end > len(source) or not length:
            continue
        before = log.size
        assert log.append(offset, source[offset:end]) == max(before, end)
        if end > before:
            there += bytes(max(0, offset - before)) + b"\1" * (end - max(offset, before))
        if jump % 7 == 0:
            log.close()
            log = LogFile(folder / "log", bytes_max=BOUND)
            assert log.size == len(there)
    count = random.Random(seed).choice([1000, 5000, 1 << 20])
    seen = bytearray(len(there))
    for at, data in read_all(log, 0, count):
        assert data == source[at : at + len(data)]
        seen[at : at + len(data)] = b"\1" * len(data)
    assert seen[log.start :] == there[log.start :], "a byte lost, or a hole read as data"
    assert not any(seen[: log.start])
    assert len(there) - log.start <= BOUND + 20_000
    log.close()
