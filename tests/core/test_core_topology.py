"""Where gangs go on nodes with labels, taints and places: within racks and blocks, and what is said of it."""

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.candidates import candidates_for
from paceline.scheduler.core.job import Course, Job, TaskRun
from paceline.scheduler.core.settings import Order, Settings
from paceline.scheduler.core.slots import find_slots
from paceline.spec.ids import JobId, Micros, NodeId
from paceline.spec.lifecycle import JobState
from paceline.spec.resources import Constraints
from support.paddock import Paddock, shape

IN_RACK = Constraints(within="rack")
IN_BLOCK = Constraints(within="block")
NEAR = Constraints(within="rack", within_preferred=True)


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def rack(paddock: Paddock, block: str, name: str, nodes: int, **facts: object) -> list[str]:
    names = [f"{block}-{name}-{at}" for at in range(nodes)]
    for each in names:
        paddock.node_joins(each, **{"gpus": 8, "labels": {"block": block, "rack": name}, **facts})
    return names


def racks_of(paddock: Paddock, job: int) -> list[str]:
    return [node.rpartition("-")[0] for node in paddock.nodes_of(job)]


def test_a_gang_goes_into_the_rack_in_which_it_leaves_least_behind(paddock: Paddock) -> None:
    for name, nodes in (("r1", 4), ("r2", 3), ("r3", 2)):
        rack(paddock, "b1", name, nodes)
    [two, three, four] = paddock.submit(*(shape(n, gpus=8, constraints=IN_RACK) for n in (2, 3, 4)))
    assert racks_of(paddock, two) == ["b1-r3"] * 2
    assert racks_of(paddock, three) == ["b1-r2"] * 3
    assert racks_of(paddock, four) == ["b1-r1"] * 4


def test_of_the_racks_that_will_do_one_with_preferred_nodes_is_taken(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 2)
    rack(paddock, "b1", "r2", 3)
    for at in range(3):
        labels = {"block": "b1", "rack": "r3", **({"disk": "nvme"} if at else {})}
        paddock.node_joins(f"b1-r3-{at}", gpus=8, labels=labels)
    near = Constraints(prefer=(("disk", ("nvme",)),), within="rack")
    [two, rest] = paddock.submit(*[shape(2, gpus=8, constraints=near)] * 2)
    assert paddock.nodes_of(two) == ["b1-r3-1", "b1-r3-2"]
    assert racks_of(paddock, rest) == ["b1-r1"] * 2


def test_racks_of_one_name_in_two_blocks_are_two(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 1)
    rack(paddock, "b2", "r1", 1)
    [job] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK))
    assert paddock.state_of(job) is JobState.QUEUED
    assert paddock.why(job).never


def test_of_equal_racks_the_one_in_the_fuller_block_is_taken(paddock: Paddock) -> None:
    for block, racks in (("b1", 3), ("b2", 2)):
        for at in range(racks):
            rack(paddock, block, f"r{at}", 2)
    [job] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK))
    assert racks_of(paddock, job) == ["b2-r0"] * 2
    [large] = paddock.submit(shape(6, gpus=8, constraints=IN_BLOCK))
    assert racks_of(paddock, large) == ["b1-r0"] * 2 + ["b1-r1"] * 2 + ["b1-r2"] * 2


def test_a_gang_that_would_rather_be_close_takes_the_narrowest_place_there_is(paddock: Paddock) -> None:
    for block in ("b1", "b2"):
        for name in ("r1", "r2"):
            rack(paddock, block, name, 2)
    [three] = paddock.submit(shape(3, gpus=8, constraints=NEAR))
    assert racks_of(paddock, three) == ["b1-r1", "b1-r1", "b1-r2"]
    [two] = paddock.submit(shape(2, gpus=8, constraints=NEAR))
    assert racks_of(paddock, two) == ["b2-r1"] * 2
    [rest] = paddock.submit(shape(3, gpus=8, constraints=NEAR))
    assert racks_of(paddock, rest) == ["b1-r2", "b2-r2", "b2-r2"], "anywhere, in as few places as can be"


def test_a_gang_that_asks_for_nothing_is_kept_together_where_that_costs_nothing(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 3)
    rack(paddock, "b1", "r2", 2)
    [job] = paddock.submit(shape(2, gpus=8))
    assert racks_of(paddock, job) == ["b1-r2"] * 2
    [four] = paddock.submit(shape(3, gpus=4))
    assert racks_of(paddock, four) == ["b1-r1"] * 3


def test_a_rack_that_is_begun_fills_up_before_another_is_begun(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 2)
    rack(paddock, "b1", "r2", 2)
    rack(paddock, "b2", "r1", 1)
    jobs = paddock.submit(*[shape(gpus=8)] * 3)
    assert [racks_of(paddock, job) for job in jobs] == [["b2-r1"], ["b1-r1"], ["b1-r1"]]
    for job in jobs[:2]:
        paddock.starts(job)
        paddock.finishes(job)
    [one, two] = paddock.submit(shape(gpus=8), shape(gpus=8))
    assert sorted(racks_of(paddock, one) + racks_of(paddock, two)) == ["b1-r1", "b2-r1"]
    [gang] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK))
    assert racks_of(paddock, gang) == ["b1-r2"] * 2


def test_who_is_stopped_for_a_gang_makes_room_within_one_rack() -> None:
    """Not where the least would be lost, but could not be used together."""
    paddock = Paddock(Settings(order=Order(min_run_us=0)))
    one, two, three = rack(paddock, "b1", "r1", 1) + rack(paddock, "b1", "r2", 2)
    jobs = paddock.submit(*[shape(gpus=8, constraints=Constraints(labels=(("rack", ("r2",)),)))] * 2)
    jobs += paddock.submit(shape(gpus=8))
    assert [paddock.nodes_of(job) for job in jobs] == [[two], [three], [one]]
    for job in jobs:
        paddock.starts(job)
    [gang] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK), priority=5)
    assert [bool(paddock.stops_sent(job)) for job in jobs] == [True, True, False]
    for job in jobs[:2]:
        paddock.says(job, 0, s.Exited(0, -15, killed_by_us=True), s.Ended((-15,), (0,)))
    assert paddock.nodes_of(gang) == [two, three]


def test_ranks_follow_the_place(paddock: Paddock) -> None:
    """Whatever the nodes are called; rank 0 where a port is free, and its neighbours after it."""
    for name, where, ports in (("a", "r2", (1,)), ("b", "r1", ()), ("c", "r2", (1,)), ("d", "r1", ())):
        paddock.node_joins(name, labels={"rack": where}, ports=ports)
    [job] = paddock.submit(shape(4, cpus=8))
    assert paddock.nodes_of(job) == ["b", "d", "a", "c"]
    paddock.cancel(job, 0)
    paddock.starts(job)
    for task in range(4):
        paddock.task_ends(job, task)
    [gang] = paddock.submit(shape(4, cpus=8, rendezvous=True))
    assert paddock.nodes_of(gang) == ["a", "c", "b", "d"]


def test_a_gang_goes_to_a_rack_with_a_rendezvous_port(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 2, ports=())
    rack(paddock, "b1", "r2", 3)
    [job] = paddock.submit(shape(2, gpus=8, rendezvous=True, constraints=IN_RACK))
    assert racks_of(paddock, job) == ["b1-r2"] * 2


def test_a_restarted_gang_stays_in_its_rack_and_leaves_it_only_when_it_must(paddock: Paddock) -> None:
    names = rack(paddock, "b1", "r1", 3)
    rack(paddock, "b1", "r2", 2)
    rack(paddock, "b1", "r3", 3)
    [filler] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK))
    [job] = paddock.submit(shape(2, gpus=8, retries=3, constraints=IN_RACK))
    assert racks_of(paddock, filler) == ["b1-r2"] * 2
    assert paddock.nodes_of(job) == names[:2]
    paddock.starts(job)
    paddock.cordon(names[0])
    fails(paddock, job)
    assert paddock.nodes_of(job) == [names[2], names[1]], "each rank where it was, as far as that can be"
    paddock.starts(job)
    paddock.cordon(names[1])
    fails(paddock, job)
    paddock.pass_time(2)  # the second failure in a row
    assert racks_of(paddock, job) == ["b1-r3"] * 2


def fails(paddock: Paddock, job: int) -> None:
    count = len(paddock.job(job).tasks)
    paddock.rank_dies(job, 0)
    for task in range(count):
        paddock.task_ends(job, task, -9)


def test_an_elastic_gang_takes_what_one_rack_has(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 2)
    rack(paddock, "b1", "r2", 3)
    [job] = paddock.submit(shape(4, least=2, most=8, gpus=8, constraints=IN_RACK))
    assert racks_of(paddock, job) == ["b1-r2"] * 3


def test_labels_are_wanted_preferred_and_taints_borne(paddock: Paddock) -> None:
    paddock.node_joins("a", labels={"zone": "z1"})
    paddock.node_joins("b", labels={"zone": "z2", "disk": "nvme"})
    paddock.node_joins("c", labels={"zone": "z2"}, taints=["spot=eu"])
    zone = (("zone", ("z2", "z3")),)
    [there, fast, spot, any_spot] = paddock.submit(
        shape(constraints=Constraints(labels=zone)),
        shape(constraints=Constraints(prefer=(("disk", ("nvme",)),))),
        shape(constraints=Constraints(labels=zone, prefer=(("disk", ("hdd",)),), tolerate=(("spot", "eu"),))),
        shape(cpus=8, constraints=Constraints(tolerate=(("spot", ""),))),
    )
    assert paddock.nodes_of(there) == ["b"]
    assert paddock.nodes_of(fast) == ["b"]
    assert paddock.nodes_of(spot) == ["b"]
    assert paddock.nodes_of(any_spot) == ["a"]
    [whole] = paddock.submit(shape(cpus=8, constraints=Constraints(tolerate=(("spot", ""),))))
    assert paddock.nodes_of(whole) == ["c"]


def test_a_job_waits_for_labels_that_come(paddock: Paddock) -> None:
    paddock.node_joins("a", labels={"zone": "z1"})
    [job] = paddock.submit(shape(constraints=Constraints(labels=(("zone", ("z2",)),))))
    assert paddock.why(job).never
    paddock.node_joins("a", labels={"zone": "z2"})
    assert paddock.nodes_of(job) == ["a"]


def test_constraints_outlive_a_restart_of_the_scheduler(paddock: Paddock) -> None:
    names = rack(paddock, "b1", "r1", 1)
    [job] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK))
    paddock.scheduler_restarts()
    paddock.node_joins(names[0])
    assert paddock.job(job).demand.constraints == IN_RACK
    assert paddock.state.nodes[names[0]].inventory.labels == (("block", "b1"), ("rack", "r1"))  # type: ignore[index]
    rack(paddock, "b1", "r1", 2)
    assert racks_of(paddock, job) == ["b1-r1"] * 2


def test_what_waits_for_one_rack_says_what_is_missing_there(paddock: Paddock) -> None:
    names = rack(paddock, "b1", "r3", 2)
    rack(paddock, "b1", "r4", 2)
    [small, filler] = paddock.submit(shape(gpus=2), shape(2, gpus=8, constraints=IN_RACK))
    assert (racks_of(paddock, small), racks_of(paddock, filler)) == (["b1-r3"], ["b1-r4"] * 2)
    [job] = paddock.submit(shape(2, gpus=8, models=("H100",), constraints=IN_RACK))
    [reason] = paddock.why(job).reasons
    assert reason.code == "not-now"
    assert reason.text == (
        "needs 2 tasks x (8 H100 GPUs, 1 cpu) in one rack; needs 2 more H100 GPUs in one rack: rack b1/r3 has"
        f" 14 of 16 H100 GPUs free (job {small} holds 2 there); 1 of 2 fit there, no more in the 1 other;"
        f" {names[0]} has 6 H100 GPUs free of 8 (job {small} holds 2 there); {names[1]} has room for 1"
    )
    assert reason.fields["domain"] == "rack b1/r3"
    assert reason.fields["gpus_short"] == 2


def test_what_waits_for_cpus_in_one_rack_says_so(paddock: Paddock) -> None:
    names = rack(paddock, "b1", "r1", 2, gpus=0)
    [first] = paddock.submit(shape(cpus=2))
    [job] = paddock.submit(shape(2, cpus=8, constraints=IN_RACK))
    assert paddock.why(job).reasons[0].text == (
        "needs 2 tasks x (8 cpus) in one rack; needs room for 1 more in one rack: 1 of 2 fit in rack b1/r1;"
        f" {names[0]} has 6 of 8 cpus free (job {first} holds 2 there); {names[1]} has room for 1"
    )


@pytest.mark.parametrize(
    ("constraints", "text"),
    [
        (
            Constraints(labels=(("zone", ("a", "c")),)),
            "no node has zone=a or c; 3 have zone=b, 1 has zone=d",
        ),
        (
            Constraints(labels=(("disk", ("ssd",)), ("zone", ("b",)))),
            "no node has disk=ssd; none has a label disk",
        ),
        (
            Constraints(labels=(("gen", ("2",)), ("zone", ("d",)))),
            "no node of the 2 with gen=2 has zone=d; 2 have zone=b",
        ),
        (
            Constraints(labels=(("zone", ("d",)),)),
            "the only node with zone=d has a taint that it does not tolerate: dedicated=vision (1)",
        ),
        (Constraints(within="clique"), "no node has a label clique, within which all of it shall be"),
        (
            Constraints(within="rack"),
            "the largest rack holds 2 such tasks when empty (rack r1), asked 3 tasks x (8 cpus)",
        ),
    ],
)
def test_never_says_which_labels_there_are(paddock: Paddock, constraints: Constraints, text: str) -> None:
    paddock.node_joins("n1", labels={"zone": "b", "gen": "2", "rack": "r1"})
    paddock.node_joins("n2", labels={"zone": "b", "gen": "2", "rack": "r1"})
    paddock.node_joins("n3", labels={"zone": "b", "gen": "1", "rack": "r2"})
    paddock.node_joins("n4", labels={"zone": "d"}, taints=["dedicated=vision"])
    [job] = paddock.submit(shape(3, cpus=8, constraints=constraints))
    why = paddock.why(job)
    assert why.never
    assert text in why.reasons[0].text


def test_what_waits_says_which_nodes_are_not_for_it(paddock: Paddock) -> None:
    paddock.node_joins("n1", labels={"zone": "a"})
    paddock.node_joins("n2", labels={"zone": "b"})
    paddock.node_joins("n3", labels={"zone": "a"}, taints=["spot"])
    zone = Constraints(labels=(("zone", ("a",)),))
    [first, second] = paddock.submit(shape(cpus=8, constraints=zone), shape(cpus=8, constraints=zone))
    assert paddock.why(second).reasons[0].text == (
        "needs 1 task with 8 cpus on nodes with zone=a; 0 of 1 fit now; n1 has 0 of 8 cpus free (job"
        f" {first} holds 8 there); 2 of 3 nodes are not for it: 1 has the taint spot, 1 lacks zone=a"
    )


def test_a_cordoned_rack_would_have_room(paddock: Paddock) -> None:
    names = rack(paddock, "b1", "r1", 2)
    rack(paddock, "b1", "r2", 1)
    paddock.cordon(names[0], why="new disks")
    [job] = paddock.submit(shape(2, gpus=8, constraints=IN_RACK))
    why = paddock.why(job)
    assert not why.never
    assert (
        "1 of 3 nodes is cordoned (b1-r1-0: new disks, by ann): it would have room for 1 task"
        in why.reasons[0].text
    )
    paddock.uncordon(names[0])
    assert racks_of(paddock, job) == ["b1-r1"] * 2


def test_room_without_a_port_in_any_one_rack_says_so(paddock: Paddock) -> None:
    rack(paddock, "b1", "r1", 2, ports=())
    rack(paddock, "b1", "r2", 1)
    [job] = paddock.submit(shape(2, gpus=8, rendezvous=True, constraints=IN_RACK))
    assert paddock.state_of(job) is JobState.QUEUED
    assert paddock.why(job).reasons[0].code == "no-port"


def test_where_tasks_go_does_not_hang_on_the_order_in_which_nodes_changed(paddock: Paddock) -> None:
    """Two of four come back to where they were, and one more node is too few for the others."""
    names = [NodeId(name) for name in rack(paddock, "b1", "r1", 3, gpus=2)]
    was = (TaskRun(0, names[2]), TaskRun(1, names[1]))
    again = Job(
        JobId(1), "gang", "ann", 0, Micros(1), shape(4, gpus=1, constraints=IN_RACK), Course(tasks=was)
    )
    state = paddock.state
    room = candidates_for(state, again.demand)
    slots = find_slots(state, again)
    assert slots is not None and slots[:2] == [names[2], names[1]]
    for level in room.domains:
        level.members = {path: dict(reversed(nodes.items())) for path, nodes in level.members.items()}
    assert find_slots(state, again) == slots
