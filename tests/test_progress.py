"""The progress bar: how many states it leaves where every one is kept, counted on a clock that the test turns."""

from __future__ import annotations

import os
import sys

import pytest

from qartsr_lib.base import progress as module
from qartsr_lib.base.progress import progress

DAY = 24 * 3600


@pytest.fixture
def states(monkeypatch, capsys):
    """states(seconds of each item, ...) -> (what the bar wrote, split at carriage returns; the clock at each)."""

    def run(durations, **options) -> tuple[list[str], list[float]]:
        clock, times = [1e6], []
        monkeypatch.setattr(module, "monotonic", lambda: clock[0])
        write = sys.stderr.write
        monkeypatch.setattr(
            sys.stderr, "write", lambda text: (times.extend([clock[0] - 1e6] * ("\r" in text)), write(text))[1]
        )
        for seconds in progress(durations, "work", **options):
            clock[0] += seconds
        return capsys.readouterr().err.rstrip("\n").split("\r")[1:], times

    monkeypatch.delenv("QARTSR_LOG_PROGRESS", raising=False)
    return run


@pytest.fixture(params=["pipe", "kernel", "log"])
def place(request, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if request.param == "kernel":
        monkeypatch.setitem(sys.modules, "ipykernel", os)
    return request.param


@pytest.mark.parametrize(
    "durations",
    [
        [0.001] * 20_000,
        [0.5] * 10_000,
        [60.0] * 10_000,
        [DAY] * 1000,
        [6.0 * 1.3**n for n in range(60)],
        [2.0**n for n in range(28)],
        [1000.0] * 30 + [0.1] * 3000,
    ],
    ids=["20 s", "hours", "a week", "three years", "ever slower", "twice as slow each", "ever faster"],
)
@pytest.mark.parametrize("total", [True, False], ids=["total", "no total"])
def test_a_bar_leaves_at_most_60_states_and_the_first_and_the_last(states, place, durations, total):
    shown, _ = states(durations if total else iter(durations))
    end = f"{len(durations)}/{len(durations)} " if total else f"{len(durations)}it "
    assert len(shown) <= 60
    assert (" 0/" if total else " 0it") in shown[0] and end in shown[-1]


def test_eight_pictures_leave_at_most_ten_states_each_with_its_number(states, place):
    shown, times = states([7200.0] * 8)
    assert [state.split("|")[-1].split()[0] for state in shown] == [f"{n}/8" for n in (*range(9), 8)]
    assert times == [*range(0, 9 * 7200, 7200), 8 * 7200]


def test_a_long_loop_shows_a_state_after_half_a_minute_and_then_ever_again(states, place):
    _, times = states([3.0] * 100_000)  # 83 hours; a thirtieth is 3 hours
    assert 5 <= times[1] <= 33
    assert all(
        later <= 2 * earlier + 3 or later - earlier <= 3 * 3600 + 3
        for earlier, later in zip(times[1:], times[2:], strict=False)
    )


def test_a_short_loop_shows_two_states(states, place):
    shown, _ = states([0.1] * 40)
    assert len(shown) == 2


def test_stopped_in_the_middle_the_bar_is_closed_with_what_was_done(capsys):
    for number in progress(range(9), "work"):
        if number == 4:
            break
    assert capsys.readouterr().err.count("4/9") == 1


def test_a_terminal_is_refreshed_often(capsys, monkeypatch):
    monkeypatch.delenv("QARTSR_LOG_PROGRESS", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = iter(range(10**6))
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    list(progress(range(200), "work"))
    assert capsys.readouterr().err.count("\r") > 100
    monkeypatch.setenv("QARTSR_LOG_PROGRESS", "1")
    list(progress(range(200), "work"))
    assert capsys.readouterr().err.count("\r") == 2


def test_a_bar_within_another_leaves_no_cursor_codes_in_a_log(capsys):
    for _ in progress(range(2), "outer"):
        list(progress(range(3), "inner"))
    assert "\x1b" not in capsys.readouterr().err
