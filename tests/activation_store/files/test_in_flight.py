"""Several calls at the same time, and no more than so many."""

import threading
import time

import pytest

from activation_store.files.in_flight import InFlight


@pytest.mark.parametrize("n", [1, 2, 8])
def test_results_are_in_order(n):
    def slow(number):
        time.sleep(0.002 * (number % 3))
        return number

    assert list(InFlight(n).map(slow, range(30))) == list(range(30))
    assert list(InFlight(n).map(slow, [])) == []


def test_no_more_run_or_wait_than_there_is_room_for_however_many_ask():
    asked, taken, most, lock, threads_before = 0, 0, 0, threading.Lock(), threading.active_count()

    def ask(number):
        nonlocal asked, most
        with lock:
            asked += 1
            most = max(most, asked - taken)
        return number

    flight = InFlight(4)
    readers = [flight.map(ask, range(10)) for _ in range(20)]
    for _ in range(10):
        for reader in readers:
            next(reader)
            taken += 1
    assert [list(reader) for reader in readers] == [[]] * 20
    # One more than there is room for, which is on its way to whoever asked.
    assert most <= 5
    assert threading.active_count() < threads_before + 15


def test_what_fails_is_raised_in_its_place_and_room_is_given_back():
    def fail(number):
        if number == 3:
            raise OSError("gone")
        return number

    flight = InFlight(4)
    for _ in range(5):
        results = flight.map(fail, range(9))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="gone"):
            next(results)
    left = flight.map(fail, range(2))
    next(left)
    left.close()
    # All four at a time, or the barrier breaks.
    together = threading.Barrier(4)
    assert [place >= 0 for place in flight.map(lambda _: together.wait(timeout=20), range(4))] == [True] * 4
