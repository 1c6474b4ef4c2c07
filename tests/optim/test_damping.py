"""The damping: what it does about noise, and about failure."""

from __future__ import annotations

import math

import pytest

from raphson.optim import DampingOptions
from raphson.optim._damping import DampingSchedule


def after(*changes, lr=1.0, **options):
    """The damping, from 1, after steps that promised -1 and changed the loss by so much."""
    schedule = DampingSchedule(DampingOptions(1.0, **options))
    for change in changes:
        schedule.adapt(change, -1.0, lr)
    return schedule.value


def test_steps_as_good_as_promised_lower_it():
    assert after(-1.0) == pytest.approx(0.95**5)
    assert after(-1.0, -1.0, -1.0) == pytest.approx(0.95**15)
    assert after(*[-1.0] * 20, smallest=0.5) == 0.5


def test_gains_that_are_mostly_noise_raise_it():
    assert after(*[-0.3] * 10) == 1.0
    assert after(*[-0.2] * 10) == pytest.approx(0.95**-50)


def test_a_single_bad_step_among_good_ones_is_noise():
    assert after(*[-0.6] * 10, 1.0, *[-0.6] * 10) == 1.0
    assert after(*[-0.5] * 10, *[1.0] * 10) > 2.0


def test_a_loss_that_is_not_finite_raises_it_at_once_and_is_forgotten():
    assert after(*[-0.5] * 10, math.nan) == pytest.approx(0.95**-5)
    assert after(*[-0.5] * 10, math.inf, -0.5) == pytest.approx(0.95**-5)


def test_noise_raises_it_to_a_share_of_the_curvature_and_failure_beyond():
    schedule = DampingSchedule(DampingOptions(1.0))
    for _ in range(5):
        schedule.adapt(-0.1, -1.0, 1.0, 1e6)
    assert schedule.value == pytest.approx(0.95**-25)  # the bound, 10, is not reached
    for _ in range(10):
        schedule.adapt(-0.1, -1.0, 1.0, 1e6)
    assert schedule.value == 10.0
    schedule.adapt(-0.1, -1.0, 1.0, 1e4)  # of a smaller curvature: as it is
    assert schedule.value == 10.0
    for _ in range(10):
        schedule.adapt(5.0, -1.0, 1.0, 1e4)
    assert schedule.value > 20.0


def test_it_follows_the_curvature_up_however_good_steps_are():
    schedule = DampingSchedule(DampingOptions(1.0))
    for _ in range(4):
        schedule.adapt(-1.0, -1.0, 1.0, 1e6)  # the least is 10
    assert schedule.value == pytest.approx(0.95**-20)
    for _ in range(20):
        schedule.adapt(-1.0, -1.0, 1.0, 1e6)
    assert schedule.value == 10.0
    schedule.adapt(-1.0, -1.0, 1.0, 0.99e6)
    assert schedule.value == pytest.approx(9.9)  # nor does it fall below
    schedule.adapt(-1.0, -1.0, 1.0)  # of the batch that made the step: the loss alone tells
    assert schedule.value == pytest.approx(9.9 * 0.95**5)


def test_a_schedule_that_shortens_steps_holds_it():
    assert after(1.0, lr=0.0) == 1.0
    assert 1.0 < after(1.0, lr=0.5) < after(1.0)


def test_it_is_found_where_a_first_step_does_most():
    schedule = DampingSchedule(DampingOptions())
    schedule.begin(lambda damping: abs(math.log10(damping) - 2.2), guess=1e-3)
    assert schedule.value == pytest.approx(10**2, rel=1e-6)


def test_a_smaller_one_is_taken_where_its_first_step_does_nearly_as_much():
    schedule = DampingSchedule(DampingOptions())
    schedule.begin(lambda damping: -1.0 + 0.15 * (math.log10(damping) - 2) ** 2, guess=1.0)
    assert schedule.value == pytest.approx(1.0, rel=1e-6)  # within 2.4 decades the gain is 0.1 or more


def test_no_first_one_is_far_below_the_curvature():
    schedule = DampingSchedule(DampingOptions())
    schedule.begin(lambda damping: -1.0, guess=5.0)
    assert schedule.value == pytest.approx(5e-4, rel=1e-6)


def compared(schedule, last):
    return [count for count in range(1, last + 1) if schedule.due(count)]


def test_comparisons_that_change_nothing_become_rarer_and_a_change_brings_them_back():
    schedule = DampingSchedule(DampingOptions(1.0))
    assert compared(schedule, 20) == [5, 10, 15, 20]
    for gap in (2, 4, 4):
        schedule.adapt(-0.5, -1.0, 1.0, 1.0)
        assert schedule.gap == gap
    assert [count for count in compared(schedule, 160) if count > 80] == [100, 120, 140, 160]
    assert compared(schedule, 39) == [5, 10, 15, 20, 25, 30, 35]  # nothing waits for more than a quarter of the steps
    schedule.adapt(math.nan, -1.0, 1.0, 1e6)
    assert schedule.gap == 1
    assert compared(DampingSchedule(DampingOptions(1.0, adapt=False)), 20) == []


def test_between_comparisons_it_follows_the_curvature_up():
    schedule = DampingSchedule(DampingOptions(1.0))
    schedule.follow(lambda: 1e6, 4)  # no period ends here
    assert schedule.value == 1.0
    for count in (5, 10):
        schedule.follow(lambda: 1e6, count)
    assert schedule.value == pytest.approx(0.95**-10)
    schedule.follow(lambda: 1.0, 15)
    assert schedule.value == pytest.approx(0.95**-10)
    fixed = DampingSchedule(DampingOptions(1.0, adapt=False))
    fixed.follow(lambda: 1e6, 5)
    assert fixed.value == 1.0
