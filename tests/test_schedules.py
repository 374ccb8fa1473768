"""Schedules of checkpoints, held to the lists in Tigges et al.'s code, its two slips mended."""

import pytest

from circuitdb import schedules
from circuitdb.errors import ModelError, OptionError, UnknownNameError


def test_linear_is_every_thousandth_step():
    steps = schedules.named("linear")
    assert steps[:2] == (1000, 2000)
    assert steps[-1] == 143_000
    assert len(steps) == 143


def test_exponential_doubles_as_far_as_pythia_has_checkpoints():
    expected = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    expected += (1000, 2000, 4000, 8000, 16_000, 33_000, 66_000, 131_000, 143_000)
    assert schedules.named("exponential") == expected


def test_exponential_plus_detail_has_every_step_once_and_the_last():
    steps = schedules.named("exponential_plus_detail")
    upstream = [2**k for k in range(10)]
    upstream += [*range(1000, 16_000, 1000), *range(15_000, 70_000, 5000)]
    upstream += [*range(70_000, 150_000, 10_000)]
    assert upstream.count(15_000) == 2
    assert set(steps) == {*upstream, 143_000}
    assert len(set(steps)) == len(steps)
    assert sorted(steps) == list(steps)
    assert schedules.named("exp_plus_detail") == steps


def test_an_unknown_schedule_is_an_error_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'exponential'"):
        schedules.named("exponental")
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        schedules.chosen("liner", (0, 10), "m")


def test_lists_have_steps_and_ranges():
    assert schedules.listed("900,0") == (0, 900)
    assert schedules.listed("1000-3000/1000,5") == (5, 1000, 2000, 3000)
    assert schedules.listed("3-5") == (3, 4, 5)


@pytest.mark.parametrize("text", ["", "1,,2", "-5", "5-1", "1-5/0", "1.5", "0-9/x"])
def test_what_is_no_list_of_steps_is_refused(text):
    with pytest.raises(OptionError, match="is no step"):
        schedules.listed(text)


def test_of_a_schedule_the_steps_that_are_there_are_taken():
    assert schedules.chosen("exponential", (0, 1, 3, 4, 1000), "m") == (1, 4, 1000)
    assert schedules.chosen("all", (0, 5), "m") == (0, 5)
    assert schedules.chosen("last", (0, 5), "m") == (5,)
    assert schedules.chosen([5, 0], (0, 5), "m") == (0, 5)


def test_a_model_of_its_own_weights_alone_has_all_and_last_but_no_step():
    assert schedules.chosen("all", (), "m") == schedules.chosen("last", (), "m") == ()
    with pytest.raises(ModelError, match="no checkpoint 3; it has none, only its own weights"):
        schedules.chosen("3", (), "m")


def test_a_step_of_a_list_that_is_not_there_is_an_error():
    with pytest.raises(ModelError, match="'m' has no checkpoint 7; it has 0, 5"):
        schedules.chosen("0,7", (0, 5), "m")
    with pytest.raises(ModelError, match="no step of schedule 'linear'; it has 0, 5"):
        schedules.chosen("linear", (0, 5), "m")


def test_a_training_keeps_its_last_step_always():
    assert schedules.within("exponential", 1500) == (*[2**k for k in range(10)], 1000, 1500)
    assert schedules.within("0-100/50", 120) == (0, 50, 100, 120)
    assert schedules.within("last", 7) == (7,)
    assert schedules.within("all", 2) == (0, 1, 2)
    with pytest.raises(OptionError, match="checkpoint 9 lies beyond the last step, 8"):
        schedules.within([9], 8)
