"""When a run saves: one rank alone, by steps, by time, by what costs say, by a request and before its end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from paceline.proto.notice import Notice
from paceline.spec.every import FIRST_S, Every, best_interval
from paceline.training import schedule as module
from paceline.training.environment import Environment
from paceline.training.gang import Gang
from paceline.training.orders import Purpose
from paceline.training.schedule import Cost, SaveSchedule
from paceline.training.stop import StopAgreement, StopNotice


class Rank:
    """A run of one rank with a clock and a notice of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.cost: Cost | None = None
        self.file = folder / "notice"
        self.hear()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        notice = StopNotice(folder)
        self.agreement = StopAgreement(Gang(Environment()), notice)
        self._make = lambda **more: SaveSchedule(
            self.agreement, notice, lambda: self.cost, first_rank=True, **more
        )

    def schedule(self, **more: object) -> SaveSchedule:
        return self._make(**more)

    def hear(self, **told: object) -> None:
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(Notice(**told).encode())  # type: ignore[arg-type]


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rank:
    return Rank(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("calls", "yes"),
    [
        (range(31), [10, 20, 30]),
        (range(15, 31), [20, 30]),
        ([3, 9, 12, 13, 29, 31], [12, 29, 31]),
        ([10, 10, 11], [10]),
    ],
)
def test_each_multiple_once(rank: Rank, calls: list[int], yes: list[int]) -> None:
    schedule = rank.schedule()
    assert [step for step in calls if schedule.should_save(step, "10 steps")] == yes


def test_the_job_file_goes_before_the_script(rank: Rank) -> None:
    schedule = rank.schedule(every=Every(steps=3))
    assert [step for step in range(1, 8) if schedule.should_save(step, "1 step")] == [3, 6]
    assert schedule.begin_save() == Purpose("every 3 steps")


def test_by_time_counted_from_the_last_save(rank: Rank) -> None:
    schedule = rank.schedule()
    assert not schedule.should_save(1, "60 s")
    rank.now_s += 60
    assert schedule.should_save(2, "60 s") and schedule.begin_save().why == "every 60 s"
    rank.now_s += 59
    assert not schedule.should_save(3, "60 s")


def test_auto_follows_what_saves_cost(rank: Rank) -> None:
    schedule = rank.schedule(mtbf_s=43200.0)
    rank.now_s += FIRST_S
    assert schedule.should_save(1, "auto") and "the first one shows" in schedule.begin_save().why
    rank.cost = (0.05, 1.2)
    wanted = best_interval(0.05, 1.2, 43200)
    rank.now_s += wanted.seconds - 1
    assert not schedule.should_save(2, "auto")
    rank.now_s += 1
    assert schedule.should_save(3, "auto") and schedule.begin_save().why == wanted.why


def test_after_a_restart_it_begins_with_what_saves_cost_before(rank: Rank) -> None:
    schedule = rank.schedule(mtbf_s=1e9, before=(1.0, 2.0))
    rank.now_s += 1799
    assert not schedule.should_save(1, "auto")
    rank.now_s += 1
    assert schedule.should_save(2, "auto")


def test_a_request_is_answered_once_and_waits_for_the_save_before(rank: Rank) -> None:
    schedule = rank.schedule()
    rank.hear(save_request=7)
    assert schedule.should_save(1, "auto")
    assert schedule.begin_save() == Purpose("asked for", 7, must=True)
    assert not schedule.should_save(2, "auto")


def test_a_save_that_the_script_makes_by_itself_answers_a_request(rank: Rank) -> None:
    schedule = rank.schedule()
    rank.hear(save_request=9)
    assert schedule.begin_save() == Purpose("asked for", 9)
    assert not schedule.should_save(1, "auto") and schedule.begin_save() == Purpose()


def test_before_the_end_once_and_should_stop_comes_after(rank: Rank) -> None:
    schedule = rank.schedule()
    assert not schedule.should_save(1, "auto") and not rank.agreement.should_stop()
    rank.hear(stop=True, kill_at_s=1012.5)
    assert not rank.agreement.should_stop(), "no rank leaves before it was asked to save"
    assert schedule.should_save(2, "auto") and rank.agreement.should_stop()
    assert schedule.begin_save().must
    assert not schedule.should_save(3, "auto")


def test_who_is_asked_to_stay_is_not_asked_to_stop(rank: Rank) -> None:
    rank.hear(stop=True, stay=True)
    assert not rank.agreement.should_stop() and rank.agreement.stay
    rank.hear(stop=True)
    assert rank.agreement.should_stop() and not rank.agreement.stay, "it was cancelled meanwhile"
