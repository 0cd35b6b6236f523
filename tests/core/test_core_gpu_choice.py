"""Which GPUs of a node a task gets, against what counting all choices finds."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from paceline.scheduler.core.gpu_choice import Group, choose_gpus, groups_of, linked_groups
from paceline.scheduler.core.node import NodeGpu

HGX = groups_of(tuple(NodeGpu(index, "H100", index // 4, 0) for index in range(8)))
BRIDGES = groups_of(tuple(NodeGpu(index, "A40", index // 4, index // 2) for index in range(8)))


def test_a_task_stays_on_one_numa_node_and_leaves_the_other_whole() -> None:
    assert choose_gpus(range(8), HGX, 2) == (0, 1)
    assert choose_gpus((0, 1, 2, 3, 4, 5, 6), HGX, 2) == (4, 5)
    assert choose_gpus((3, 4, 5, 6, 7), HGX, 4) == (4, 5, 6, 7)
    assert choose_gpus((1, 2, 3, 4, 5), HGX, 1) == (4,)
    assert choose_gpus((1, 2, 3, 4, 5), HGX, 4) == (1, 2, 3, 4)


def test_a_bridge_joins_a_pair_within_a_numa_node() -> None:
    assert choose_gpus((1, 2, 3, 4, 5, 6, 7), BRIDGES, 1) == (1,)
    assert choose_gpus((1, 2, 3, 4, 5, 6, 7), BRIDGES, 2) == (2, 3)
    assert choose_gpus((1, 2, 3, 4, 5, 6, 7), BRIDGES, 3) == (1, 2, 3)
    assert choose_gpus((1, 3, 4, 6, 7), BRIDGES, 2) == (6, 7)
    assert choose_gpus((1, 3, 4, 6), BRIDGES, 2) == (1, 3), "no bridge, but one NUMA node"


def test_where_nothing_is_known_the_first_are_taken() -> None:
    assert choose_gpus((5, 1, 3), (), 2) == (1, 3)
    assert choose_gpus((5, 1, 3), [frozenset({5})], 2) == (1, 5)


def test_links_join_by_others_too() -> None:
    assert linked_groups([(0, 1), (3, 2), (1, 4), (6, 5), (4, 3)]) == {
        0: 0,
        1: 0,
        2: 0,
        3: 0,
        4: 0,
        5: 5,
        6: 5,
    }
    assert linked_groups([]) == {}


partitions = st.lists(st.integers(0, 3), min_size=8, max_size=8)


@given(partitions, st.sets(st.integers(0, 7), min_size=1), st.data())
def test_no_choice_is_within_fewer_numa_nodes(numa: list[int], free: set[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(free)))
    groups = groups_of(tuple(NodeGpu(index, "H100", node) for index, node in enumerate(numa)))
    chosen = choose_gpus(sorted(free), groups, count)
    assert len(set(chosen)) == count
    assert set(chosen) <= free
    assert _spread(chosen, numa) == min(_spread(one, numa) for one in combinations(sorted(free), count))


@given(partitions, partitions, st.sets(st.integers(0, 7), min_size=1), st.data())
def test_one_group_that_has_enough_is_enough(
    numa: list[int], linked: list[int], free: set[int], data: st.DataObject
) -> None:
    """However the two kinds of groups lie; and no smaller group would have done."""
    count = data.draw(st.integers(1, len(free)))
    groups = groups_of(tuple(NodeGpu(index, "H100", numa[index], linked[index]) for index in range(8)))
    chosen = set(choose_gpus(sorted(free), groups, count))
    assert len(chosen) == count
    assert chosen <= free
    sizes = [len(group & free) for group in groups if len(group & free) >= count]
    if sizes:
        assert min(len(group & free) for group in groups if chosen <= group) == min(sizes)


def _spread(chosen: tuple[int, ...], numa: list[int]) -> int:
    return len({numa[index] for index in chosen})


def test_groups_are_told_once() -> None:
    gpus = (NodeGpu(0, "H100", 0, 0), NodeGpu(1, "H100", 0, 0), NodeGpu(2, "H100"))
    assert groups_of(gpus) == (Group({0, 1}),)
