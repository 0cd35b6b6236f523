"""Files in memory, in huge pages where the kernel gives them: their bytes are the same either way."""

import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from paceline.training.images import Image, map_image
from paceline.training.mapping import map_file, take_huge_pages

HUGE_BYTES = 2 * 1024 * 1024


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="paceline-test-", dir="/dev/shm") as name:
        yield Path(name)


def huge_bytes_of(path: Path) -> int:
    """Of the mappings of that file in this process."""
    found = 0
    for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if str(path) in mapping:
            [kb] = re.findall(r"ShmemPmdMapped: +(\d+) kB", mapping)
            found += int(kb) * 1024
    return found


def gives_huge_pages(memory: Path) -> bool:
    """Asked with nothing of ours: of a mapping whose offset happens to fit its address."""
    path = memory / "asked"
    path.write_bytes(b"1" * 3 * HUGE_BYTES)
    with path.open("r+b") as file:
        for offset in range(0, HUGE_BYTES, mmap.PAGESIZE):
            mapped = mmap.mmap(file.fileno(), 2 * HUGE_BYTES, offset=offset)
            try:
                mapped.madvise(25)  # MADV_COLLAPSE
            except OSError:
                continue
            return True
    return False


def test_an_image_is_in_huge_pages_for_all_who_map_it(memory: Path) -> None:
    if not gives_huge_pages(memory):
        pytest.skip("this kernel gives no huge pages for files in memory, or has none free")
    size_bytes = 2 * HUGE_BYTES + 5000
    image = Image(memory / "image", size_bytes)
    assert huge_bytes_of(image.path) == 2 * HUGE_BYTES
    image.map[:] = data = os.urandom(size_bytes)
    mapped = map_image(image.path)
    assert mapped == data
    assert huge_bytes_of(image.path) == 4 * HUGE_BYTES, "the reader's, too"
    image.close()


@pytest.mark.parametrize("size_bytes", [1, 5000, HUGE_BYTES, 3 * HUGE_BYTES + 1])
def test_what_is_written_to_a_view_is_in_the_file(memory: Path, size_bytes: int) -> None:
    path = memory / "file"
    path.write_bytes(bytes(size_bytes + 10))
    with path.open("r+b") as file:
        view = map_file(file.fileno(), size_bytes)
    assert len(view) == size_bytes
    view[:] = data = os.urandom(size_bytes)
    assert path.read_bytes() == data + bytes(10)


def test_a_file_that_is_there_keeps_its_length_and_nearly_all_of_its_bytes(memory: Path) -> None:
    path = memory / "file"
    path.write_bytes(data := os.urandom(2 * HUGE_BYTES + 10))
    with path.open("r+b") as file:
        take_huge_pages(file.fileno(), HUGE_BYTES + 10)
    assert path.read_bytes() == b"\0" + data[1:]


def test_a_mapping_goes_with_its_last_view(memory: Path) -> None:
    path, process = memory / "file", psutil.Process()
    path.write_bytes(b"1" * 5000)
    fds = process.num_fds()
    view = map_image(path)
    part = view[10:20]
    del view
    assert part == b"1" * 10
    del part
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert process.num_fds() == fds


def test_an_empty_file_is_not_mapped(memory: Path) -> None:
    path = memory / "file"
    path.touch()
    with pytest.raises(OSError, match="Invalid argument"):
        map_image(path)
