"""What an endpoint needs next: updates without a gap, failures taken back, no request cut off."""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline.scheduler.endpoints import changing, steer
from paceline.scheduler.endpoints.endpoint import DeploymentState
from paceline.scheduler.endpoints.endpoints import Endpoints
from paceline.scheduler.endpoints.stimuli import (
    DeleteEndpoint,
    Deploy,
    Leave,
    Remove,
    Rollback,
    Scale,
    Settle,
    SetTraffic,
    StartReplica,
    StartRouter,
)
from paceline.spec.deployment import DeploymentSpec
from paceline.spec.errors import Conflict, NotFound
from paceline.spec.ids import Attempt, JobId, Micros

SECOND = 1_000_000


@dataclass
class Stable:
    """An endpoint whose jobs and router this test plays. Ill replicas are those of models named `bad`."""

    endpoints: Endpoints = field(default_factory=Endpoints)
    now_us: int = SECOND
    jobs: dict[JobId, steer.Seen] = field(default_factory=dict)
    models: dict[JobId, str] = field(default_factory=dict)
    in_flight: dict[JobId, int] = field(default_factory=dict)
    last_job: int = 0
    router: bool = True
    keys: int = 0

    def spec(self, model: str, replicas: int = 2, **more: object) -> DeploymentSpec:
        return DeploymentSpec.model_validate(
            {"endpoint_name": "e", "model": model, "instance_count": replicas, **more}
        )

    def deploy(self, model: str, replicas: int = 2, name: str = "main", **more: object) -> None:
        spec, self.keys = self.spec(model, replicas, **more), self.keys + 1
        scale = spec.scale
        asked = Deploy(
            *(f"k{self.keys}", "ann", "e", name, spec.to_json(), model),
            *(scale.min_instances, scale.max_instances, "", "", "secret"),
        )
        changing.asked(self.endpoints, asked, Micros(self.now_us))

    @property
    def endpoint(self):
        return self.endpoints.get("e")

    @property
    def main(self):
        return self.endpoint.deployments["main"]

    def heard(self) -> dict[JobId, steer.Heard]:
        if not self.router:
            return {}
        leaving = {
            job: bool(one.leaving_us)
            for deployment in self.endpoint.deployments.values()
            for job, one in deployment.replicas.items()
        }
        return {
            job: steer.Heard(
                seen.url, "bad" not in self.models[job], leaving[job], self.in_flight.get(job, 0), 0, 0, ""
            )
            for job, seen in self.jobs.items()
            if job in leaving and seen.url
        }

    def view(self) -> steer.View:
        return steer.View(dict(self.jobs), self.heard(), self.router, Micros(self.now_us))

    def well(self) -> int:
        """Replicas that answer and get new requests."""
        view = self.view()
        return sum(
            view.well(job)
            for one in self.endpoint.deployments.values()
            for job, replica in one.replicas.items()
            if not replica.leaving_us
        )

    def turn(self) -> list[steer.Move]:
        """Look once, and do it: what is started answers by the next look."""
        for job, seen in list(self.jobs.items()):
            if not seen.url:
                self.jobs[job] = steer.Seen(seen.attempt, f"http://n:{job}", stopping=False)
        moves = steer.next_moves(self.endpoint, self.specs(), self.view())
        for move in moves:
            self.do(move)
        self.now_us += SECOND
        return moves

    def specs(self) -> dict[str, DeploymentSpec]:
        return {
            name: DeploymentSpec.model_validate_json(one.newest.document)
            for name, one in self.endpoint.deployments.items()
        }

    def do(self, move: steer.Move) -> None:
        now_us = Micros(self.now_us)
        match move:
            case steer.NewReplica(name, revision):
                asked = StartReplica("e", name, revision, self.endpoint.replicas_made, None)
                changing.check_startable(self.endpoints, asked)
                job = self.new_job()
                changing.started(self.endpoints, asked, job)
                self.models[job] = self.endpoint.deployments[name].newest.model
            case steer.NewRouter():
                changing.started(
                    self.endpoints, StartRouter("e", self.endpoint.routers_made, None), self.new_job()
                )
            case steer.Away(name, job):
                changing.driven(self.endpoints, Leave("e", name, job), now_us)
            case steer.Judge(name, revision, failed):
                changing.driven(self.endpoints, Settle("e", name, revision, failed), now_us)
            case steer.Drop(name):
                changing.driven(self.endpoints, Remove("e", name), now_us)
            case steer.End(job):
                self.end(job)

    def new_job(self) -> JobId:
        self.last_job += 1
        job = JobId(self.last_job)
        self.jobs[job] = steer.Seen(Attempt(1), "", stopping=False)
        return job

    def end(self, job: JobId) -> None:
        """As the end of its job does."""
        del self.jobs[job]
        if self.endpoint.router == job:
            self.endpoint.router = None
        for one in self.endpoint.deployments.values():
            one.replicas.pop(job, None)
        self.endpoints.drop_job(self.endpoint, job)

    def settle(self, turns: int = 100) -> None:
        """Until nothing is to be done, and nothing will be by time alone."""
        for _ in range(turns):
            if "e" not in self.endpoints.by_name:
                return
            if not self.turn():
                due_us = steer.due_us(self.endpoint, self.specs(), Micros(self.now_us - SECOND))
                if due_us is None:
                    return
                self.now_us = max(self.now_us, due_us)
        raise AssertionError(f"still at it: {self.turn()}, {self.main}")


@pytest.fixture
def stable() -> Stable:
    return Stable()


def test_a_new_endpoint_gets_a_router_and_its_replicas_and_is_ready(stable: Stable) -> None:
    stable.deploy("m:1", 3)
    stable.settle()
    assert stable.endpoint.router is not None
    assert len(stable.main.replicas) == stable.well() == 3
    assert stable.main.state is DeploymentState.READY
    assert stable.endpoint.traffic == {"main": 100}


def test_an_update_never_has_fewer_that_answer_than_are_wanted(stable: Stable) -> None:
    stable.deploy("m:1", 4)
    stable.settle()
    stable.deploy("m:2", 4)
    most = 0
    while stable.turn():
        assert stable.well() >= 4
        stays = [one for one in stable.main.replicas.values() if not one.leaving_us]
        most = max(most, len(stays))
    assert most == 5, "a quarter more than wanted"
    assert {stable.models[job] for job in stable.main.replicas} == {"m:2"}
    assert stable.main.state is DeploymentState.READY
    assert stable.main.good == 2


def test_a_revision_that_does_not_become_well_is_taken_back_and_the_old_one_never_leaves(
    stable: Stable,
) -> None:
    stable.deploy("m:1", 2)
    stable.settle()
    before = set(stable.main.replicas)
    stable.deploy("bad:2", 2, progress_deadline_s=5)
    for _ in range(5):
        stable.turn()
        assert stable.well() == 2
    stable.settle()
    assert set(stable.main.replicas) == before, "the replicas of the good model go on"
    assert stable.main.state is DeploymentState.READY
    assert stable.main.newest.model == "m:1"
    assert stable.main.newest.number == 3
    assert any(
        "taken back: 0 of 2 replicas were ready after 5 s" in one.text for one in stable.endpoint.history
    )


def test_a_first_revision_that_fails_has_nothing_to_go_back_to(stable: Stable) -> None:
    stable.deploy("bad:1", 2, progress_deadline_s=5)
    stable.settle()
    assert stable.main.state is DeploymentState.FAILED
    assert "0 of 2 replicas were ready" in stable.main.why
    assert not stable.main.replicas
    stable.deploy("m:2", 2)
    stable.settle()
    assert stable.main.state is DeploymentState.READY


def test_one_that_leaves_ends_only_when_it_has_answered(stable: Stable) -> None:
    stable.deploy("m:1", 1)
    stable.settle()
    (old,) = stable.main.replicas
    stable.in_flight[old] = 2
    stable.deploy("m:2", 1)
    for _ in range(10):
        stable.turn()
    assert stable.main.replicas[old].leaving_us
    assert old in stable.jobs, "it has two requests to answer"
    stable.in_flight[old] = 0
    stable.settle()
    assert old not in stable.jobs


def test_one_that_never_answers_ends_when_a_request_may_take_no_longer(stable: Stable) -> None:
    stable.deploy("m:1", 1, request_settings={"request_timeout_ms": 10_000})
    stable.settle()
    (old,) = stable.main.replicas
    stable.in_flight[old] = 1
    stable.deploy("m:2", 1, request_settings={"request_timeout_ms": 10_000})
    turns = 0
    while old in stable.jobs:
        stable.turn()
        turns += 1
        assert turns < 40
    assert turns >= 15


def test_without_a_word_of_the_router_nobody_leaves(stable: Stable) -> None:
    stable.deploy("m:1", 2)
    stable.settle()
    stable.router = False
    stable.deploy("m:2", 2)
    for _ in range(20):
        stable.turn()
    olds = [job for job, one in stable.main.replicas.items() if one.revision == 1 and not one.leaving_us]
    assert len(olds) == 2
    stable.router = True
    stable.settle()
    assert {stable.models[job] for job in stable.main.replicas} == {"m:2"}


def test_a_rollback_brings_back_models_and_traffic(stable: Stable) -> None:
    stable.deploy("m:1", 1)
    stable.settle()
    stable.deploy("m:9", 1, name="green")
    stable.settle()
    ask = SetTraffic("t1", "ann", "e", {"main": 10, "green": 90}, {})
    changing.asked(stable.endpoints, ask, Micros(stable.now_us))
    assert stable.endpoint.traffic == {"main": 10, "green": 90}
    changing.asked(stable.endpoints, Rollback("r1", "ann", "e"), Micros(stable.now_us))
    assert stable.endpoint.traffic == {"main": 100}
    stable.deploy("m:2", 1)
    stable.settle()
    changing.asked(stable.endpoints, Rollback("r2", "ann", "e"), Micros(stable.now_us))
    stable.settle()
    assert stable.main.newest.model == "m:1"
    assert {stable.models[job] for job in stable.main.replicas} == {"m:1"}


def test_traffic_goes_to_nobody_who_was_never_ready(stable: Stable) -> None:
    stable.deploy("m:1", 1)
    stable.settle()
    stable.deploy("bad:1", 1, name="green")
    with pytest.raises(Conflict, match="green of endpoint e has never been ready"):
        changing.asked(stable.endpoints, SetTraffic("t", "ann", "e", {"green": 100}, {}), Micros(1))
    with pytest.raises(NotFound, match="did you mean 'green'"):
        changing.asked(stable.endpoints, SetTraffic("t", "ann", "e", {"gren": 100}, {}), Micros(1))


def test_a_deployment_with_traffic_cannot_be_deleted_another_can(stable: Stable) -> None:
    stable.deploy("m:1", 1)
    stable.settle()
    stable.deploy("m:2", 1, name="green")
    stable.settle()
    with pytest.raises(Conflict, match="100 % of the traffic"):
        changing.asked(stable.endpoints, DeleteEndpoint("ann", "e", "main"), Micros(1))
    changing.asked(stable.endpoints, DeleteEndpoint("ann", "e", "green"), Micros(stable.now_us))
    stable.settle()
    assert set(stable.endpoint.deployments) == {"main"}
    changing.asked(stable.endpoints, DeleteEndpoint("ann", "e"), Micros(stable.now_us))
    stable.settle()
    assert not stable.endpoints.by_name
    assert not stable.jobs


def test_more_replicas_when_scaled_and_fewer_again(stable: Stable) -> None:
    stable.deploy("m:1", scale_settings={"min_instances": 1, "max_instances": 4, "target_requests": 2})
    stable.settle()
    spec = stable.spec("m:1", scale_settings={"min_instances": 1, "max_instances": 4, "target_requests": 2})
    assert [steer.wanted_replicas(spec, load) for load in (0, 1, 2, 2.1, 7, 100)] == [1, 1, 1, 2, 4, 4]
    changing.driven(stable.endpoints, Scale("e", "main", 3, "busy"), Micros(stable.now_us))
    stable.settle()
    assert stable.well() == 3
    changing.driven(stable.endpoints, Scale("e", "main", 1, "idle"), Micros(stable.now_us))
    stable.settle()
    assert stable.well() == 1


def test_routers_that_end_one_after_the_other_are_replaced_ever_later(stable: Stable) -> None:
    stable.deploy("m:1", 1)
    starts = []
    while len(starts) < 12:
        if any(isinstance(move, steer.NewRouter) for move in stable.turn()):
            starts.append(stable.now_us)
            stable.endpoint.routers_failed += 1
            stable.endpoint.router_failed_us = Micros(stable.now_us)
            stable.end(stable.endpoint.router)
        elif due_us := steer.due_us(stable.endpoint, stable.specs(), Micros(stable.now_us - SECOND)):
            stable.now_us = max(stable.now_us, due_us)
    gaps = [(later - sooner) // SECOND for sooner, later in itertools.pairwise(starts)]
    assert gaps[0] <= 2
    assert gaps == sorted(gaps)
    assert 295 <= gaps[-1] <= 310


def test_what_is_stored_is_what_was(stable: Stable) -> None:
    stable.deploy("m:1", 2)
    stable.settle()
    stable.deploy("m:2", 2)
    stable.turn()
    rows = stable.endpoints.take_changes().records
    again = Endpoints({name: record for name, record in rows.items() if record is not None})
    assert again.by_name == stable.endpoints.by_name
    assert again.by_job == stable.endpoints.by_job


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["m", "bad"]), st.integers(1, 5), st.integers(0, 8)), min_size=1, max_size=6
    )
)
def test_whatever_is_deployed_amid_whatever_the_good_ones_stay_until_others_answer(
    plan: list[tuple[str, int, int]],
) -> None:
    stable = Stable()
    stable.deploy("m:0", 2)
    stable.settle()
    wanted = 2
    for number, (kind, replicas, turns) in enumerate(plan, 1):
        stable.deploy(f"{kind}:{number}", replicas, progress_deadline_s=4)
        wanted = min(wanted, replicas)
        for _ in range(turns):
            stable.turn()
            assert stable.well() >= min(wanted, 1)
    stable.settle(200)
    assert stable.main.state is DeploymentState.READY
    assert stable.well() == len(stable.main.replicas) == stable.main.wanted
