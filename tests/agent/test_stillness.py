"""When silence is a hang, on a clock of our own: what a run has needed before is never one."""

import pytest
from paceline.agent.stillness import Patience, Stillness
from paceline.proto.beats import RESTORES, SAVES, TRAINS, Beats


class Ranks:
    """Ranks whose beats, CPU time and clock the test moves; the shim looks once a second."""

    def __init__(self, patience: Patience = Patience(), ranks: int = 2) -> None:  # noqa: B008 - frozen
        self.now_s = 1000.0
        self.stillness = Stillness(patience)
        self.beats = [
            Beats(rank, 100 + rank, 0, 0, -1, self.now_s, 0.0, TRAINS, 0.0) for rank in range(ranks)
        ]
        self.cpu_s = dict.fromkeys(range(ranks), 0.0)
        self.asked = 0

    def step(self, *ranks: int, after_s: float = 0.1) -> None:
        self.now_s += after_s
        for rank in ranks or range(len(self.beats)):
            beats = self.beats[rank]
            longest_s = max(beats.longest_s, self.now_s - beats.at_s) if beats.steps else 0.0
            self.beats[rank] = beats._replace(steps=beats.steps + 1, at_s=self.now_s, longest_s=longest_s)

    def phase(self, rank: int, phase: int) -> None:
        self.beats[rank] = self.beats[rank]._replace(phase=phase, at_s=self.now_s)

    def pass_time(self, seconds: float, *busy: int) -> float | None:
        """After how many seconds it was a hang; None: it is none."""
        for second in range(1, int(seconds) + 1):
            self.now_s += 1.0
            for rank in busy:
                self.cpu_s[rank] += 0.5
            self.stillness.look(self.now_s, self.beats, self._used)
            if self.stillness.stall is not None:
                return second
        return None

    def _used(self) -> dict[int, float]:
        self.asked += 1
        return dict(self.cpu_s)


DAY_S = 24 * 3600


@pytest.mark.parametrize("fixed_s", [0.0, 1.0])
def test_who_never_beats_is_never_taken_for_hung(fixed_s: float) -> None:
    ranks = Ranks(Patience(fixed_s=fixed_s), ranks=0)
    assert ranks.pass_time(DAY_S) is None
    assert ranks.stillness.still_s == -1 and not ranks.asked


@pytest.mark.parametrize(
    ("patience", "limit_s"),
    [
        (Patience(), 1800),
        (Patience(trained=True), 300),
        (Patience(fixed_s=40), 40),
        (Patience(fixed_s=40, trained=True), 40),
        (Patience(fixed_s=-1, trained=True), None),
    ],
)
def test_an_idle_start_is_waited_for_from_the_last_that_was_seen_of_it(
    patience: Patience, limit_s: float | None
) -> None:
    """A slot without a step: the rank has begun to restore, and waits for its peers."""
    ranks = Ranks(patience)
    assert ranks.pass_time(30) is None
    ranks.phase(1, TRAINS)
    found_s = ranks.pass_time(DAY_S)
    assert found_s == (limit_s and pytest.approx(limit_s, abs=1))
    stall = ranks.stillness.stall
    assert stall is None or (stall.idle and stall.step == -1 and stall.limit_s == limit_s)
    assert not ranks.stillness.begun


def test_a_start_that_works_is_no_hang_unless_the_job_set_a_limit() -> None:
    """It may download, prepare and compile for longer than anybody guesses."""
    for trained in (False, True):
        assert Ranks(Patience(trained=trained)).pass_time(DAY_S, 1) is None
        assert Ranks(Patience(fixed_s=40, trained=trained)).pass_time(DAY_S, 1) == pytest.approx(1800, abs=1)


def test_where_the_job_has_trained_before_a_start_counts_from_its_beginning() -> None:
    """No rank has a slot: they wait for each other to join."""
    ranks = Ranks(Patience(trained=True), ranks=0)
    ranks.cpu_s[0] = 0.0
    assert ranks.pass_time(3600, 0) is None
    assert ranks.pass_time(DAY_S) == pytest.approx(75, abs=75), "idle since, and long past the limit"
    ranks = Ranks(Patience(trained=True), ranks=0)
    assert ranks.pass_time(DAY_S) == pytest.approx(300, abs=1)


def test_the_first_step_ends_the_start() -> None:
    ranks = Ranks(Patience(trained=True))
    assert ranks.pass_time(299) is None
    ranks.step(0)
    assert ranks.pass_time(299) is None and ranks.stillness.begun


def test_a_restore_before_the_first_step_has_the_time_of_work_also_when_it_is_idle() -> None:
    for patience in (Patience(trained=True), Patience(fixed_s=10)):
        ranks = Ranks(patience)
        ranks.phase(1, RESTORES)
        assert ranks.pass_time(DAY_S) == pytest.approx(1800, abs=1)
        ranks = Ranks(patience)
        ranks.phase(1, RESTORES)
        found_s = ranks.pass_time(DAY_S, 1)
        assert found_s == (pytest.approx(1800, abs=1) if patience.fixed_s else None)


def test_an_idle_gang_has_five_minutes_and_a_busy_one_thirty() -> None:
    idle, busy = Ranks(), Ranks()
    for ranks in (idle, busy):
        ranks.step()
        ranks.step()
    assert idle.pass_time(DAY_S) == pytest.approx(300, abs=1)
    assert idle.stillness.stall is not None and idle.stillness.stall.idle
    assert busy.pass_time(DAY_S, 1) == pytest.approx(1800, abs=1)
    assert busy.stillness.stall is not None and not busy.stillness.stall.idle


def test_one_that_falls_idle_later_is_found_soon_after() -> None:
    ranks = Ranks()
    ranks.step()
    assert ranks.pass_time(400, 0) is None
    found_s = ranks.pass_time(DAY_S)
    assert found_s is not None and 75 <= found_s <= 150


def test_ten_times_the_longest_pause_is_no_silence() -> None:
    """An evaluation of ten minutes was seen: the next may take more than an hour."""
    ranks = Ranks()
    ranks.step()
    ranks.step(after_s=600)
    ranks.step()
    assert ranks.pass_time(5990) is None
    assert ranks.pass_time(DAY_S) is not None


def test_one_rank_that_moves_is_enough() -> None:
    ranks = Ranks()
    ranks.step()
    for _ in range(50):
        ranks.step(0, after_s=1.0)
        assert ranks.pass_time(250) is None


@pytest.mark.parametrize("phase", [SAVES, RESTORES])
@pytest.mark.parametrize("fixed_s", [0.0, 10.0])
def test_a_save_and_a_restore_have_their_own_time(phase: int, fixed_s: float) -> None:
    ranks = Ranks(Patience(fixed_s=fixed_s))
    ranks.step()
    ranks.phase(1, phase)
    assert ranks.pass_time(DAY_S) == pytest.approx(1800, abs=1)
    ranks.phase(1, TRAINS)
    assert ranks.pass_time(5) is None


def test_a_limit_that_the_job_set_is_the_limit_and_off_is_off() -> None:
    ranks = Ranks(Patience(fixed_s=30))
    ranks.step()
    assert ranks.pass_time(DAY_S, 0, 1) == pytest.approx(30, abs=1)
    assert not ranks.asked
    ranks = Ranks(Patience(fixed_s=-1))
    ranks.step()
    assert ranks.pass_time(DAY_S) is None


def test_a_machine_that_stood_still_is_nobodys_silence() -> None:
    ranks = Ranks()
    ranks.step()
    assert ranks.pass_time(100) is None
    ranks.now_s += 3600  # nothing ran: the shim did not look either
    assert ranks.pass_time(150) is None
    assert ranks.pass_time(100) is not None


def test_it_is_over_when_a_step_comes() -> None:
    ranks = Ranks(Patience(fixed_s=5))
    ranks.step()
    assert ranks.pass_time(10) == 5
    ranks.step()
    assert ranks.pass_time(4) is None
    assert ranks.stillness.still_s == pytest.approx(4)


def test_a_clock_that_the_job_set_ahead_is_taken_for_now() -> None:
    """The mapping is the job's own to write."""
    ranks = Ranks(Patience(fixed_s=5), ranks=1)
    ranks.step()
    ranks.beats[0] = ranks.beats[0]._replace(at_s=1e12)
    assert ranks.pass_time(3) is None and ranks.stillness.still_s == 0.0
