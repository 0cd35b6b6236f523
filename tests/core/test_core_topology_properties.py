"""Topology under random clusters, jobs and changes: honoured always, and as good as a plain count finds."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.core.candidates import (
    Candidates,
    can_ever,
    candidates_for,
    most_tasks,
    tasks_that_fit,
)
from paceline.scheduler.core.job import Shape
from paceline.scheduler.core.slots import find_slots
from paceline.scheduler.core.topology import domain_of, scope_of, share_out
from paceline.spec.ids import NodeId
from paceline.spec.resources import Constraints, GangDemand
from support.paddock import Paddock, shape
from support.sim_laws import state_is_sane

LEVELS = ("block", "rack")
places = st.fixed_dictionaries(
    {},
    optional={
        "block": st.sampled_from(["b1", "b2"]),
        "rack": st.sampled_from(["r1", "r2"]),
        "zone": st.sampled_from(["z1", "z2"]),
    },
)
nodes = st.fixed_dictionaries(
    {
        "labels": places,
        "gpus": st.sampled_from([0, 2, 4]),
        "cpus": st.sampled_from([2, 4]),
        "taints": st.sampled_from([[], [], ["spot"]]),
    }
)
standing = st.fixed_dictionaries(
    {
        "labels": st.fixed_dictionaries(
            {"block": st.sampled_from(["b1", "b2", "b3"]), "rack": st.sampled_from(["r1", "r2"])}
        ),
        "cpus": st.sampled_from([1, 2, 4]),
    }
)
constraints = st.builds(
    Constraints,
    labels=st.sampled_from([(), (), (("zone", ("z1",)),)]),
    prefer=st.sampled_from([(), (("zone", ("z2",)),)]),
    tolerate=st.sampled_from([(), (("spot", ""),)]),
    within=st.sampled_from(["", "rack", "block", "zone"]),
    within_preferred=st.booleans(),
)
gangs = st.builds(
    lambda tasks, least, cpus, gpus, where: shape(
        tasks, least=min(tasks, least), cpus=cpus, gpus=gpus, constraints=where
    ),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, 2]),
    st.none() | constraints,
)


def cluster(joining: list[tuple[str, dict[str, object]]]) -> Paddock:
    paddock = Paddock()
    for name, facts in joining:
        paddock.node_joins(name, **facts)
    return paddock


def named(facts: list[dict[str, object]]) -> list[tuple[str, dict[str, object]]]:
    return [(f"n{at}", one) for at, one in enumerate(facts)]


@settings(max_examples=150)
@given(st.lists(nodes, min_size=1, max_size=8), st.lists(st.tuples(gangs, st.integers(0, 9)), max_size=12))
def test_labels_taints_and_domains_are_kept_and_gangs_are_whole(
    facts: list[dict[str, object]], asks: list[tuple[Shape, int]]
) -> None:
    """Through restarts, cordons and nodes that change their labels; and the memo is as if made anew."""
    paddock = cluster(named(facts))
    for ask, then in asks:
        [number] = paddock.submit(ask)
        name = f"n{then % len(facts)}"
        if then < 3 and paddock.state.jobs[number].placed:  # type: ignore[index]
            paddock.starts(number)
            paddock.cordon(name)
            for task in range(len(paddock.job(number).tasks)):
                paddock.task_ends(number, task, -9)
        elif then == 3:
            paddock.uncordon(name)
        elif then == 4:
            load = paddock.state.loads[NodeId(name)]
            held = {key.job for key in load.tasks}
            if not held:
                paddock.node_joins(name, **facts[(then + 1) % len(facts)])
        for job in paddock.state.jobs.values():
            if job.placed:
                honoured(paddock, [task.node for task in job.tasks], job.demand)
        state_is_sane(paddock.state)
        for demand in list(paddock.state.candidates):
            memo_is_fresh(paddock, demand)
        assert_nobody_waits_in_vain(paddock)


def honoured(paddock: Paddock, where: list[NodeId], demand: GangDemand) -> None:
    assert demand.instance_count_min <= len(where) <= demand.instance_count_max
    asked = demand.constraints or Constraints()
    found = [paddock.state.nodes[name].inventory for name in where]
    for inventory in found:
        labels = dict(inventory.labels)
        assert all(labels.get(key) in values for key, values in asked.labels)
        assert all(taint[0] == "spot" and asked.tolerate for taint in inventory.taints)
    if demand.within:
        scope = scope_of(demand.within, LEVELS)
        domains = {domain_of(inventory.labels, scope) for inventory in found}
        assert len(domains) == 1
        assert None not in domains


def memo_is_fresh(paddock: Paddock, demand: GangDemand) -> None:
    state = paddock.state
    memo = candidates_for(state, demand)
    fresh = Candidates(memo.demand, LEVELS)
    fresh.follow(state)
    assert (memo.fits, memo.room, memo.keys) == (fresh.fits, fresh.room, fresh.keys)
    assert memo.domains == fresh.domains
    assert memo.most() == fresh.most() == plain_most(paddock, memo.demand, False)
    least = demand.instance_count_min
    assert can_ever(state, demand) is (plain_most(paddock, demand, True) >= least)


def plain_most(paddock: Paddock, demand: GangDemand, empty: bool) -> int:
    """By a plain count, domain by domain."""
    sums: dict[object, int] = {}
    for node in paddock.state.nodes.values():
        if node.cordon is not None or (not empty and node.node in paddock.state.claimed):
            continue
        load = paddock.state.loads[node.node]
        room = most_tasks(node.inventory, demand) if empty else tasks_that_fit(node, load, demand)
        labels = dict(node.inventory.labels)
        domain: object = ()
        if demand.within:
            domain = tuple(labels.get(key, "") for key in scope_of(demand.within, LEVELS))
            if demand.within not in labels:
                continue
        sums[domain] = sums.get(domain, 0) + room
    return max(sums.values(), default=0)


def assert_nobody_waits_in_vain(paddock: Paddock) -> None:
    for _, number in paddock.state.queue.firsts():
        demand = paddock.state.jobs[number].demand
        assert plain_most(paddock, demand, False) < demand.instance_count_min


@settings(max_examples=60)
@given(
    st.lists(nodes, min_size=2, max_size=6), st.lists(gangs, max_size=8), st.randoms(use_true_random=False)
)
def test_where_a_gang_goes_does_not_depend_on_who_joined_first(
    facts: list[dict[str, object]], asks: list[Shape], random: object
) -> None:
    def placed(joining: list[tuple[str, dict[str, object]]]) -> list[list[str]]:
        paddock = cluster(joining)
        return [paddock.nodes_of(number) for ask in asks for number in paddock.submit(ask)]

    mixed = named(facts)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert placed(mixed) == placed(named(facts))


@settings(max_examples=150)
@given(st.lists(standing, min_size=1, max_size=7), st.integers(2, 6))
def test_a_gang_that_would_be_close_is_in_as_few_blocks_as_can_be(
    facts: list[dict[str, object]], tasks: int
) -> None:
    """Against all choices of nodes: first the number of blocks, then (where one block has all) of racks."""
    near = Constraints(within="rack", within_preferred=True)
    paddock = cluster(named(facts))
    [number] = paddock.submit(shape(tasks, constraints=near))
    demand = paddock.job(number).demand
    rooms = {name: most_tasks(node.inventory, demand) for name, node in paddock.state.nodes.items()}
    if sum(rooms.values()) < tasks:
        assert not paddock.job(number).placed
        return
    where = {task.node for task in paddock.job(number).tasks}
    for depth in (1, 2):
        least = min(
            len({_at(paddock, name, depth) for name in names})
            for size in range(1, len(rooms) + 1)
            for names in combinations(rooms, size)
            if sum(rooms[name] for name in names) >= tasks and (depth == 1 or _blocks(paddock, names) == 1)
        )
        assert len({_at(paddock, name, depth) for name in where}) == least
        if least > 1:
            break


def _at(paddock: Paddock, name: NodeId, depth: int) -> tuple[str, ...]:
    labels = dict(paddock.state.nodes[name].inventory.labels)
    return tuple(labels.get(level, "") for level in LEVELS[:depth])


def _blocks(paddock: Paddock, names: tuple[NodeId, ...]) -> int:
    return len({_at(paddock, name, 1) for name in names})


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=12), st.data())
def test_shares_add_up_and_are_in_the_fewest_domains(
    rooms: list[tuple[int, int]], data: st.DataObject
) -> None:
    left = {NodeId(f"n{at}"): room for at, (room, _) in enumerate(rooms)}
    paths = {NodeId(f"n{at}"): (f"r{rack}",) for at, (_, rack) in enumerate(rooms)}
    count = data.draw(st.integers(1, sum(left.values())))
    shares = share_out(left, paths, count)
    assert sum(tasks for _, tasks in shares) == count
    assert all(0 < tasks <= sum(left[name] for name in names) for names, tasks in shares)
    by_rack: dict[tuple[str, ...], int] = {}
    for name, room in left.items():
        by_rack[paths[name]] = by_rack.get(paths[name], 0) + room
    fewest = next(
        size
        for size in range(1, len(by_rack) + 1)
        if any(sum(chosen) >= count for chosen in combinations(by_rack.values(), size))
    )
    assert len(shares) == fewest


def test_looking_for_places_changes_nothing() -> None:
    paddock = Paddock()
    for at in range(4):
        paddock.node_joins(f"n{at}", labels={"block": "b1", "rack": f"r{at // 2}"})
    [number] = paddock.submit(shape(4, cpus=8, constraints=Constraints(within="block")))
    paddock.submit(shape(2, cpus=8, constraints=Constraints(within="rack")))
    job = paddock.state.jobs[number]  # type: ignore[index]
    assert find_slots(paddock.state, job) == find_slots(paddock.state, job)
