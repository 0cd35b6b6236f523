"""What survives a full collection is set aside; what dies there in a cycle is found in the end."""

import gc
import sys
import weakref
from collections.abc import Iterator
from threading import Event

import pytest
from paceline.scheduler.collector import Aside, collecting

pytestmark = pytest.mark.serial


class Node:
    """Something that can be in a cycle."""

    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture
def collected() -> Event:
    """Set when a collection is asked for."""
    return Event()


@pytest.fixture
def aside(collected: Event) -> Iterator[Aside]:
    made = Aside(0, collected.set)
    gc.disable()
    gc.collect()
    gc.freeze()
    made.measure()
    gc.callbacks.append(made)
    yield made
    gc.callbacks.remove(made)
    gc.unfreeze()
    gc.enable()


def test_a_full_collection_leaves_nothing_for_the_next(aside: Aside) -> None:
    before = gc.get_freeze_count()
    kept = [Node() for _ in range(1000)]
    gc.collect()
    assert gc.get_freeze_count() >= before + 1000
    assert not any(found is kept[0] for found in gc.get_objects())
    assert len(kept) == 1000


def test_a_cycle_that_dies_there_is_found_when_there_is_twice_as_much(aside: Aside, collected: Event) -> None:
    one, other = Node(), Node()
    one.other, other.other = other, one
    gc.collect()
    gone = weakref.ref(one)
    del one, other
    gc.collect()
    assert gone() is not None, "it was set aside"
    more = [Node() for _ in range(sys.getallocatedblocks())]  # of at least a block each
    gc.collect()  # now there is more than twice as much
    assert not collected.is_set()
    gc.collect()
    assert gone() is None
    assert collected.is_set()
    assert gc.get_freeze_count() >= len(more)


async def test_around_it_the_collector_is_off(aside: Aside) -> None:
    """At the end of a process nobody wants to wait for a look at all that it held."""
    thresholds = gc.get_threshold()
    async with collecting():
        assert gc.isenabled()
    assert not gc.isenabled()
    assert gc.get_threshold() == thresholds
