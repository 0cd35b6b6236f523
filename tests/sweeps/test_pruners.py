"""Azure's three policies against what its documentation says of them, on studies of Optuna's own."""

from collections.abc import Sequence
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from paceline.studies.pruners import AzurePolicy, Bandit, MedianStopping, Truncation


def ends(
    policy: AzurePolicy, mine: Sequence[float], others: Sequence[Sequence[float]], direction: str = "maximize"
) -> bool:
    """Whether a trial that has told `mine` ends, beside others that told theirs; steps are 10, 20, ..."""
    study = optuna.create_study(direction=direction)
    for values in (*others, mine):
        reports = {10 * (at + 1): value for at, value in enumerate(values)}
        study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values=reports))
    return policy.prune(study, study.trials[-1])


def at(interval: int = 1, delay: int = 0, **more: float | None) -> SimpleNamespace:
    return SimpleNamespace(evaluation_interval=interval, delay_evaluation=delay, **more)


def bandit(factor: float | None = None, amount: float | None = None, **more: int) -> Bandit:
    return Bandit(at(slack_factor=factor, slack_amount=amount, **more))


class TestBandit:
    def test_a_factor_is_of_the_best_at_the_same_interval(self) -> None:
        # 0.8 / (1 + 0.2) is 0.667
        assert ends(bandit(0.2), [0.1, 0.66], [[0.2, 0.8]])
        assert not ends(bandit(0.2), [0.1, 0.67], [[0.2, 0.8]])

    def test_an_amount_is_taken_off(self) -> None:
        assert ends(bandit(amount=0.2), [0.59], [[0.8]])
        assert not ends(bandit(amount=0.2), [0.61], [[0.8]])

    def test_to_minimize(self) -> None:
        assert ends(bandit(0.2), [1.21], [[1.0]], "minimize")
        assert not ends(bandit(0.2), [1.19], [[1.0]], "minimize")

    @pytest.mark.parametrize("direction, mine, best", [("maximize", -1.3, -1.0), ("minimize", -0.7, -1.0)])
    def test_slack_widens_for_negative_values_too(self, direction: str, mine: float, best: float) -> None:
        assert ends(bandit(0.2), [mine], [[best]], direction)
        assert not ends(bandit(0.5), [mine], [[best]], direction)

    def test_its_own_best_counts(self) -> None:
        assert not ends(bandit(0.2), [0.8, 0.1], [[0.2, 0.8]])

    def test_later_intervals_of_others_do_not_count(self) -> None:
        assert not ends(bandit(0.2), [0.5], [[0.5, 0.9]])

    def test_only_every_nth_interval_after_the_delay_counts(self) -> None:
        policy = bandit(0.0, interval=2, delay=2)
        others = [[1.0] * 6]
        assert [ends(policy, [0.5] * count, others) for count in (1, 2, 3, 4, 5, 6)] == [
            False,
            False,
            False,
            True,
            False,
            True,
        ]

    def test_nobody_to_compare_with(self) -> None:
        assert not ends(bandit(0.0), [0.0], [])


class TestMedianStopping:
    def test_its_best_against_the_median_of_running_means(self) -> None:
        others = [[0.2, 0.4], [0.4, 0.6], [0.6, 0.8]]  # means 0.3, 0.5, 0.7
        assert ends(MedianStopping(at()), [0.1, 0.49], others)
        assert not ends(MedianStopping(at()), [0.51, 0.1], others)

    def test_what_is_no_number_is_worst(self) -> None:
        assert ends(MedianStopping(at()), [float("nan")], [[0.1], [0.2]])


class TestTruncation:
    def test_the_worst_share_at_the_interval(self) -> None:
        others = [[value / 10] for value in range(1, 10)]  # 0.1 ... 0.9; ten with mine
        policy = Truncation(at(truncation_percentage=20))
        assert ends(policy, [0.05], others)
        assert ends(policy, [0.15], others)
        assert not ends(policy, [0.25], others)

    def test_equals_stay(self) -> None:
        assert not ends(Truncation(at(truncation_percentage=50)), [0.5], [[0.5]] * 5)

    def test_too_few_to_leave_one_out(self) -> None:
        assert not ends(Truncation(at(truncation_percentage=20)), [0.0], [[1.0], [1.0]])
