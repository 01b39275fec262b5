# SPDX-License-Identifier: GPL-2.0-or-later
"""FakeClock and SystemClock."""

import pytest

from consumer_framework.adapters.clock import SystemClock
from consumer_framework.testing import FakeClock


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
def test_a_clock_never_goes_back(clock):
    times = [clock.monotonic() for _ in range(100)]
    assert times == sorted(times)
    assert all(isinstance(time, float) for time in times)


def test_a_fake_clock_goes_on_when_it_is_told_and_not_before():
    clock = FakeClock(10.0)
    assert clock.monotonic() == clock.monotonic() == 10
    clock.advance(2.5)
    clock.advance(0)
    assert clock.monotonic() == 12.5


def test_a_fake_clock_cannot_be_turned_back():
    with pytest.raises(ValueError, match="-1"):
        FakeClock().advance(-1)
