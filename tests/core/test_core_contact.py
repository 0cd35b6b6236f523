"""Nodes go silent, are lost, return; leases run out; the scheduler suspects itself: laws 4 and 5."""

import pytest
from paceline.scheduler.core import stimuli as s
from paceline.scheduler.core.node import NodeInventory
from paceline.scheduler.core.settings import Settings
from paceline.spec.errors import LimitExceeded
from paceline.spec.ids import NodeId, TaskKey
from paceline.spec.lifecycle import AttemptOutcome, JobState, NodeContact
from support.paddock import Paddock, inventory, shape
from support.sim_checks import picture


@pytest.fixture
def paddock() -> Paddock:
    return Paddock()


def contact(paddock: Paddock, name: str) -> NodeContact:
    return paddock.state.nodes[NodeId(name)].contact


def outcome(paddock: Paddock, job: int) -> AttemptOutcome | None:
    ending = paddock.job(job).course.ending
    return ending.outcome if ending else None


def three_nodes(paddock: Paddock) -> None:
    for name in ("n1", "n2", "n3"):
        paddock.node_joins(name, cpus=2)


def test_a_short_silence_changes_nothing(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    before = paddock.job(job)
    paddock.stream_breaks("n2")
    assert contact(paddock, "n2") is NodeContact.UNKNOWN
    paddock.pass_time(2)
    assert "node n2 lost contact 2" in paddock.why(job).reasons[0].text
    welcome = paddock.node_joins("n2", TaskKey(before.number, before.attempt, 1))
    assert [position.seq for position in welcome.positions] == [1]
    assert not welcome.forget
    assert paddock.job(job) == before
    assert len(paddock.starts_sent(job)) == 2, "nothing was sent again"


@pytest.mark.parametrize("how", ["stream_breaks", "goes_silent"])
def test_a_fenced_job_is_replaced_after_three_missed_heartbeats(paddock: Paddock, how: str) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    paddock.pass_time(1)
    getattr(paddock, how)("n2")
    paddock.pass_time(3.25)
    assert (contact(paddock, "n2"), paddock.job(job).attempt) == (NodeContact.UNKNOWN, 1)
    paddock.pass_time(0.5)
    assert contact(paddock, "n2") is NodeContact.LOST
    assert paddock.job(job).attempt == 2
    assert paddock.nodes_of(job) == ["n1", "n3"], "the node that stayed keeps its task"
    assert outcome(paddock, job) is AttemptOutcome.NODE_LOST
    assert paddock.job(job).course.retries_used == 0


def test_a_lost_node_that_returns_is_told_to_forget(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(1, cpus=2))
    paddock.starts(job)
    stale = TaskKey(paddock.job(job).number, paddock.job(job).attempt, 0)
    paddock.stream_breaks("n1")
    paddock.pass_time(5)
    assert paddock.nodes_of(job) == ["n2"]
    welcome = paddock.node_joins("n1", stale)
    assert welcome.forget == (stale,)
    assert not welcome.positions


def test_a_heartbeat_after_the_verdict_is_refused(paddock: Paddock) -> None:
    three_nodes(paddock)
    session = paddock.sessions["n1"]
    paddock.goes_silent("n1")
    paddock.pass_time(4)
    assert paddock.tell(s.Heartbeat(NodeId("n1"), session)) is False
    assert contact(paddock, "n1") is NodeContact.LOST


def test_a_heartbeat_before_the_verdict_ends_the_silence(paddock: Paddock) -> None:
    three_nodes(paddock)
    session = paddock.sessions["n1"]
    paddock.goes_silent("n1")
    paddock.pass_time(2)
    assert contact(paddock, "n1") is NodeContact.UNKNOWN
    assert paddock.tell(s.Heartbeat(NodeId("n1"), session)) is True
    assert contact(paddock, "n1") is NodeContact.CONNECTED


def test_an_older_stream_that_breaks_is_no_news(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    old = paddock.sessions["n1"]
    paddock.node_joins("n1")
    paddock.tell(s.ContactLost(NodeId("n1"), old, "reset"))
    assert contact(paddock, "n1") is NodeContact.CONNECTED
    assert paddock.tell(s.Heartbeat(NodeId("n1"), old)) is False


def test_a_peer_that_falls_is_evidence_against_a_silent_node(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    paddock.stream_breaks("n2")
    paddock.rank_dies(job, 0, 1, "connection closed by peer")
    assert paddock.job(job).attempt == 2, "at once, not after the heartbeats"
    assert paddock.nodes_of(job) == ["n1", "n3"]
    assert outcome(paddock, job) is AttemptOutcome.NODE_LOST
    assert paddock.job(job).course.retries_used == 0


@pytest.mark.parametrize("by", ["exited", "ended"])
def test_a_node_that_a_fresh_scheduler_has_not_heard_yet_is_no_evidence(paddock: Paddock, by: str) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    paddock.scheduler_restarts()
    paddock.node_joins("n2", paddock.job(job).key(1))
    if by == "exited":
        paddock.rank_dies(job, 1, 3, "bad input")
    else:
        paddock.task_ends(job, 1, 3)
    ending = paddock.job(job).course.ending
    assert ending is not None
    assert (paddock.state_of(job), ending.exit_code) == (JobState.FAILED, 3)


def test_a_node_that_breaks_off_again_after_the_start_is_evidence(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    paddock.scheduler_restarts()
    for at, name in enumerate(("n1", "n2")):
        paddock.node_joins(name, paddock.job(job).key(at))
    paddock.stream_breaks("n1")
    paddock.rank_dies(job, 1, 1, "connection closed by peer")
    assert outcome(paddock, job) is AttemptOutcome.NODE_LOST


def test_a_node_that_did_not_come_back_after_the_start_is_evidence(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(3, cpus=2))
    paddock.starts(job)
    paddock.scheduler_restarts()
    for at, name in enumerate(("n1", "n2")):
        paddock.node_joins(name, paddock.job(job).key(at))
    paddock.pass_time(16)
    assert contact(paddock, "n3") is NodeContact.LOST
    if paddock.job(job).placed:
        paddock.rank_dies(job, 0, 1, "connection closed by peer")
    assert outcome(paddock, job) is AttemptOutcome.NODE_LOST


def test_an_exclusive_job_waits_until_the_lease_has_run_out_on_both_sides(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(1, cpus=2, exclusive=True))
    paddock.starts(job)
    paddock.pass_time(10)
    paddock.stream_breaks("n1")
    paddock.pass_time(30)
    assert contact(paddock, "n1") is NodeContact.LOST
    assert paddock.state_of(job) is JobState.RUNNING
    assert "replaced after 45 s because the job is exclusive" in paddock.why(job).reasons[0].text
    paddock.pass_time(14.5)
    assert paddock.job(job).attempt == 1
    paddock.pass_time(1)
    assert (paddock.job(job).attempt, paddock.nodes_of(job)) == (2, ["n2"])


def test_an_exclusive_job_rides_on_when_its_node_returns_in_time(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(1, cpus=2, exclusive=True))
    paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.pass_time(40)
    paddock.node_joins("n1", paddock.job(job).key(0))
    paddock.pass_time(60)
    assert (paddock.state_of(job), paddock.job(job).attempt) == (JobState.RUNNING, 1)
    paddock.finishes(job)
    assert paddock.state_of(job) is JobState.SUCCEEDED


def test_an_exclusive_gang_starts_again_when_its_last_task_is_gone(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2, exclusive=True, retries=1))
    paddock.starts(job)
    paddock.rank_dies(job, 0, 7)
    assert paddock.state_of(job) is JobState.QUEUED
    assert "must be gone" in paddock.why(job).reasons[0].text
    paddock.task_ends(job, 0, 7, attempt=1)
    assert paddock.state_of(job) is JobState.QUEUED
    paddock.task_ends(job, 1, -9, "stopped", attempt=1)
    assert (paddock.state_of(job), paddock.job(job).attempt) == (JobState.STARTING, 2)


def test_an_exclusive_leftover_on_a_silent_node_is_waited_for(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2, exclusive=True, retries=1))
    paddock.starts(job)
    paddock.stream_breaks("n2")
    paddock.rank_dies(job, 0, 1)
    paddock.task_ends(job, 0, 1, attempt=1)
    paddock.pass_time(44)
    assert paddock.state_of(job) is JobState.QUEUED
    paddock.pass_time(2)
    assert paddock.nodes_of(job) == ["n1", "n3"]


def test_a_leftover_that_its_node_no_longer_has_is_gone(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2, exclusive=True, retries=1))
    paddock.starts(job)
    stale = paddock.job(job).key(1)
    paddock.stream_breaks("n2")
    paddock.rank_dies(job, 0, 1)
    paddock.task_ends(job, 0, 1, attempt=1)
    welcome = paddock.node_joins("n2", stale)
    assert stale not in welcome.forget, "its end must still be reported"
    assert paddock.stops_sent(job)[-1].key == stale
    paddock.node_joins("n2")
    assert paddock.job(job).attempt == 2


def test_a_scheduler_restart_stops_nothing_and_gives_a_fresh_grace(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    before = paddock.job(job)
    paddock.pass_time(100)
    paddock.scheduler_restarts()
    assert contact(paddock, "n1") is NodeContact.UNKNOWN
    paddock.pass_time(14)
    for at, name in enumerate(("n1", "n2")):
        paddock.node_joins(name, before.key(at))
    paddock.node_joins("n3")
    paddock.pass_time(10)
    assert paddock.job(job) == before


@pytest.mark.parametrize("more", ["", "; 1 processes cannot be killed: [77]"])
@pytest.mark.parametrize("why", ["agent stopped", "lease ran out", "superseded", "stopped"])
def test_a_task_that_its_agent_ended_unasked_uses_no_retry(paddock: Paddock, why: str, more: str) -> None:
    """So ends what runs on a node that leaves with `pace agent --stop-tasks`."""
    three_nodes(paddock)
    [job] = paddock.submit(shape(1, cpus=2))
    paddock.starts(job)
    paddock.says(job, 0, s.Exited(0, -15, killed_by_us=True), s.Ended((-15,), (0,), why + more))
    found = paddock.job(job)
    assert (found.attempt, found.course.retries_used, found.course.free_restarts) == (2, 0, 1)
    assert found.course.ending is not None and found.course.ending.code == "node-lost"
    assert (
        f"task 0: {why}" in found.course.ending.text or "without being asked to" in found.course.ending.text
    )


def test_a_start_that_never_arrived_is_sent_again(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(1, cpus=2))
    paddock.scheduler_restarts()
    paddock.node_joins("n1")
    first, again = paddock.starts_sent(job)
    assert first.key == again.key
    assert (first.master_address, first.job.tasks) == (again.master_address, again.job.tasks)


def test_a_task_that_its_node_forgot_is_replaced_at_once(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(2, cpus=2))
    paddock.starts(job)
    paddock.node_joins("n1")
    assert paddock.job(job).attempt == 2
    assert outcome(paddock, job) is AttemptOutcome.NODE_LOST


def test_the_cluster_is_suspected_when_most_nodes_vanish(paddock: Paddock) -> None:
    three_nodes(paddock)
    jobs = paddock.submit(shape(cpus=2), shape(cpus=2))
    for job in jobs:
        paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.stream_breaks("n2")
    paddock.pass_time(600)
    assert paddock.state.suspected
    assert [paddock.job(job).attempt for job in jobs] == [1, 1]
    assert "most nodes are silent" in paddock.why(jobs[0]).reasons[0].text
    paddock.node_joins("n1", paddock.job(jobs[0]).key(0))
    assert not paddock.state.suspected
    paddock.pass_time(14)
    assert contact(paddock, "n2") is NodeContact.UNKNOWN, "it may be on its way, too"
    paddock.pass_time(2)
    assert contact(paddock, "n2") is NodeContact.LOST
    assert [paddock.job(job).attempt for job in jobs] == [1, 2]


def test_an_operator_may_say_that_they_are_really_gone(paddock: Paddock) -> None:
    three_nodes(paddock)
    jobs = paddock.submit(shape(cpus=2), shape(cpus=2))
    for job in jobs:
        paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.stream_breaks("n2")
    paddock.pass_time(10)
    paddock.tell(s.TrustCluster("ann"))
    paddock.pass_time(5)
    assert contact(paddock, "n1") is contact(paddock, "n2") is NodeContact.LOST
    assert paddock.nodes_of(jobs[0]) == ["n3"]


def test_a_vanished_half_is_not_most(paddock: Paddock) -> None:
    paddock.node_joins("n1")
    paddock.node_joins("n2")
    paddock.stream_breaks("n1")
    paddock.pass_time(5)
    assert not paddock.state.suspected
    assert contact(paddock, "n1") is NodeContact.LOST


def test_a_cancel_reaches_a_node_that_was_away(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(cpus=2, grace_s=30))
    paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.cancel(job)
    paddock.pass_time(2)
    before = len(paddock.stops_sent(job))
    paddock.node_joins("n1", paddock.job(job).key(0))
    [again] = paddock.stops_sent(job)[before:]
    assert again.grace_us == 28_000_000


def test_a_cancelled_job_on_a_lost_node_is_cancelled_not_replaced(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(cpus=2))
    paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.cancel(job)
    paddock.pass_time(5)
    assert paddock.state_of(job) is JobState.CANCELLED


def test_a_node_that_changes_is_believed(paddock: Paddock) -> None:
    paddock.node_joins("n1", gpus=2)
    [job, wants_four] = paddock.submit(shape(gpus=2), shape(gpus=4))
    assert paddock.why(wants_four).never
    paddock.tell(s.InventoryChanged(NodeId("n1"), paddock.sessions["n1"], inventory("n1", gpus=6)))
    assert paddock.job(wants_four).tasks[0].gpu_indices == (2, 3, 4, 5)
    paddock.tell(s.InventoryChanged(NodeId("n1"), paddock.sessions["n1"], inventory("n1", gpus=1)))
    assert paddock.state_of(job) is JobState.STARTING, "what runs goes on"
    assert not paddock.state.loads[NodeId("n1")].free_gpus


def test_nodes_are_bounded_and_forgotten() -> None:
    paddock = Paddock(Settings(nodes_max=2, forget_after_us=60_000_000))
    paddock.node_joins("n1")
    paddock.node_joins("n2")
    with pytest.raises(LimitExceeded):
        paddock.node_joins("n3")
    paddock.sessions.pop("n3")
    paddock.stream_breaks("n1")
    paddock.pass_time(70, step_s=0.5)
    assert NodeId("n1") not in paddock.state.nodes
    paddock.node_joins("n3")
    paddock.scheduler_restarts()
    assert sorted(paddock.state.nodes) == ["n2", "n3"]


def test_a_node_may_come_with_nothing(paddock: Paddock) -> None:
    bare = NodeInventory("bare", "", inventory("x").capacity)
    paddock.tell(s.Hello(NodeId("bare"), 99, "boot", bare, ()))
    [job] = paddock.submit(shape(environment="jax"))
    assert "none of 1 node has the environment 'jax'; they have none" in paddock.why(job).reasons[0].text


def test_settings_that_would_run_an_exclusive_job_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="would run twice"):
        Settings(lease_exclusive_us=40_000_000)


# --- stranded: lost contact, and nobody to take over


def stranded(paddock: Paddock, *, nodes: int = 2, **facts: float) -> int:
    """A gang over all nodes, of which n1 is lost."""
    for at in range(nodes):
        paddock.node_joins(f"n{at + 1}", cpus=2)
    [job] = paddock.submit(shape(nodes, cpus=2, retries=1, **facts))  # type: ignore[arg-type]
    paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.pass_time(12)
    assert contact(paddock, "n1") is NodeContact.LOST
    return job


def test_a_job_that_nobody_could_take_over_rides_on_when_its_node_returns(paddock: Paddock) -> None:
    job = stranded(paddock)
    before = paddock.job(job)
    assert (before.state, before.attempt) == (JobState.RUNNING, 1)
    text = paddock.why(job).reasons[0].text
    assert text.startswith(
        "n1 has not been heard of for 12 s; no other node could take all 2 tasks: never: all"
    )
    assert "given up in 9 min 58 s" in text
    paddock.pass_time(400)
    paddock.node_joins("n1", before.key(0))
    assert paddock.job(job) == before
    assert not paddock.state.stranded and not len(paddock.state.queue)
    paddock.finishes(job)
    assert paddock.state_of(job) is JobState.SUCCEEDED


def test_a_laptops_only_agent_may_restart(paddock: Paddock) -> None:
    job = stranded(paddock, nodes=1)
    paddock.node_joins("n1", paddock.job(job).key(0))
    paddock.finishes(job)
    assert (paddock.state_of(job), paddock.job(job).attempt) == (JobState.SUCCEEDED, 1)


def test_a_stranded_gang_moves_when_another_node_comes(paddock: Paddock) -> None:
    job = stranded(paddock)
    paddock.node_joins("n3", cpus=2)
    assert (paddock.job(job).attempt, sorted(paddock.nodes_of(job))) == (2, ["n2", "n3"])
    assert paddock.job(job).course.retries_used == 0


def test_a_stranded_gang_moves_when_another_job_makes_room(paddock: Paddock) -> None:
    three_nodes(paddock)
    [other] = paddock.submit(shape(1, cpus=2))
    [job] = paddock.submit(shape(2, cpus=2, gpus=0))
    paddock.starts(other)
    paddock.starts(job)
    lost = paddock.nodes_of(job)[0]
    paddock.stream_breaks(lost)
    paddock.pass_time(5)
    assert paddock.job(job).attempt == 1
    assert "1 of 2 fit now, its own places there counted" in paddock.why(job).reasons[0].text
    [late] = paddock.submit(shape(1, cpus=2))
    assert "waits behind 1 job" in paddock.why(late).reasons[0].text, "a restart comes first"
    paddock.finishes(other)
    assert paddock.job(job).attempt == 2
    assert paddock.state_of(late) is JobState.QUEUED


def test_one_that_fits_nowhere_without_its_node_does_not_hold_up_the_line(paddock: Paddock) -> None:
    paddock.node_joins("n1", cpus=8)
    paddock.node_joins("n2", cpus=2)
    [job] = paddock.submit(shape(1, cpus=8))
    paddock.starts(job)
    paddock.stream_breaks("n1")
    paddock.pass_time(5)
    [late] = paddock.submit(shape(1, cpus=2))
    assert (paddock.nodes_of(late), paddock.job(job).attempt) == (["n2"], 1)


def test_a_stranded_gang_whose_peer_falls_is_over_at_once(paddock: Paddock) -> None:
    job = stranded(paddock)
    paddock.rank_dies(job, 1, 1, "connection closed by peer")
    assert paddock.state_of(job) is JobState.QUEUED
    assert outcome(paddock, job) is AttemptOutcome.NODE_LOST


def test_a_stranded_gang_is_given_up_with_its_long_lease(paddock: Paddock) -> None:
    job = stranded(paddock)
    paddock.pass_time(590, step_s=0.5)
    assert paddock.job(job).placed
    paddock.pass_time(15, step_s=0.5)
    assert (paddock.state_of(job), outcome(paddock, job)) == (JobState.QUEUED, AttemptOutcome.NODE_LOST)


def test_the_lease_that_ends_first_counts_where_a_lost_node_has_both_kinds() -> None:
    paddock = Paddock(Settings(lease_fenced_us=20_000_000))
    paddock.node_joins("n1", cpus=4)
    fenced, exclusive = paddock.submit(shape(cpus=2), shape(cpus=2, exclusive=True))
    paddock.starts(fenced)
    paddock.starts(exclusive)
    paddock.stream_breaks("n1")
    paddock.pass_time(29.5)
    assert paddock.job(fenced).placed
    paddock.pass_time(1)
    assert outcome(paddock, fenced) is AttemptOutcome.NODE_LOST
    assert paddock.state_of(exclusive) is JobState.RUNNING
    paddock.pass_time(15)
    assert outcome(paddock, exclusive) is AttemptOutcome.NODE_LOST


def test_a_cancel_of_a_stranded_job_that_nobody_can_tell_is_over_at_once(paddock: Paddock) -> None:
    job = stranded(paddock, nodes=1)
    paddock.cancel(job)
    assert paddock.state_of(job) is JobState.CANCELLED
    assert paddock.node_joins("n1", paddock.job(job).key(0)).forget == (paddock.job(job).key(0),)


def test_a_cancel_of_a_stranded_gang_leaves_those_in_reach_their_grace(paddock: Paddock) -> None:
    job = stranded(paddock)
    paddock.cancel(job, grace_s=20)
    assert paddock.state_of(job) is JobState.RUNNING
    paddock.node_joins("n3", cpus=2)
    assert paddock.job(job).attempt == 1, "it is not moved any more"
    paddock.task_ends(job, 1, 0, "stopped")
    assert paddock.state_of(job) is JobState.CANCELLED


def test_stranded_jobs_are_recovered_and_replayed(paddock: Paddock) -> None:
    job = stranded(paddock)
    assert picture(paddock.replayed()) == picture(paddock.state)
    paddock.scheduler_restarts()
    assert paddock.state.stranded == {job}
    paddock.node_joins("n2", paddock.job(job).key(1))
    paddock.node_joins("n3", cpus=2)
    assert paddock.job(job).attempt == 2


# --- a node that refuses


def test_a_node_that_refuses_is_let_alone_for_a_growing_time(paddock: Paddock) -> None:
    paddock.node_joins("n1", cpus=2)
    [job] = paddock.submit(shape(cpus=2))
    refusals = 0
    for _ in range(4 * 120):
        if paddock.state_of(job) is JobState.STARTING:
            refusals += 1
            paddock.says(
                job, 0, s.Refused("disk-full", "no space left on /var (0 B of 40 GB)", transient=True)
            )
        paddock.pass_time(0.25)
    assert 9 <= refusals <= 13, "0.1 s, 0.2 s, 0.4 s ... up to a minute"
    text = paddock.why(job).reasons[0].text
    assert f"n1 refused {refusals} starts in a row and is asked again in" in text
    assert "no space left on /var (0 B of 40 GB)" in text
    paddock.pass_time(60)
    paddock.starts(job)
    node = paddock.state.nodes[NodeId("n1")]
    assert (node.refusals, node.rests_until_us) == (0, 0)
    assert picture(paddock.replayed()) == picture(paddock.state)


def test_a_node_that_refused_one_job_gets_no_other(paddock: Paddock) -> None:
    three_nodes(paddock)
    [job] = paddock.submit(shape(cpus=2))
    refused = paddock.nodes_of(job)[0]
    paddock.says(job, 0, s.Refused("disk-full", "no space left", transient=True))
    others = paddock.submit(shape(cpus=2), shape(cpus=2))
    assert refused not in [paddock.nodes_of(other)[0] for other in others]
    paddock.pass_time(1)
    assert paddock.nodes_of(job) == [refused]
