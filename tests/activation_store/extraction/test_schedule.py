"""Which worker does which shard."""

import random

import pytest

from activation_store.extraction.schedule import MOST_DEATHS, Schedule


def test_long_shards_first_and_one_waiting_while_there_are_enough():
    schedule = Schedule({0: 5, 1: 9, 2: 5, 3: 7, 4: 1})
    schedule.join(0)
    schedule.join(1)
    assert [schedule.next(0), schedule.next(1)] == [1, 3]
    # Three are left, and two may wait.
    assert schedule.next(0) == 0
    assert schedule.next(0) is None
    assert schedule.next(1) == 2
    schedule.done(0, 1)
    # The last goes to whoever is free.
    assert [schedule.next(0), schedule.next(1)] == [None, None]
    schedule.done(0, 0)
    assert schedule.next(0) == 4
    for worker, shard in ((1, 3), (1, 2), (0, 4)):
        assert not schedule.is_done
        schedule.done(worker, shard)
    assert schedule.is_done


def test_what_a_dead_worker_had_is_done_first_and_only_its_first_shard_counts():
    schedule = Schedule(dict.fromkeys(range(4), 1))
    for death in (1, 2):
        schedule.join(death)
        assert [schedule.next(death), schedule.next(death)] == [0, 1]
        assert schedule.died(death) == ([0, 1], None)
    # The second time it is put last: everything else is done before the run is given up.
    schedule.join(3)
    given = [schedule.next(3), schedule.next(3)]
    for shard in (1, 2, 3):
        assert shard in given
        schedule.done(3, shard)
        given.append(schedule.next(3))
    assert MOST_DEATHS == 3
    assert schedule.died(3) == ([0], 0)


def test_what_a_dead_worker_had_committed_is_not_done_again():
    schedule = Schedule({0: 2, 1: 1})
    schedule.join(0)
    assert schedule.next(0) == 0
    schedule.died(0)
    schedule.drop(0)
    schedule.join(1)
    assert schedule.next(1) == 1
    schedule.done(1, 1)
    assert schedule.is_done


@pytest.mark.parametrize("seed", range(20))
def test_every_shard_is_done_once_whoever_dies(seed):
    chosen = random.Random(seed)
    n_tokens = {shard: chosen.randint(1, 99) for shard in range(30)}
    schedule, alive, at_work, done = Schedule(n_tokens), set(), {}, []
    n_started = n_deaths = 0
    while not schedule.is_done:
        while len(alive) < 4:
            schedule.join(n_started)
            at_work[n_started] = []
            alive.add(n_started)
            n_started += 1
        for worker in alive:
            while (shard := schedule.next(worker)) is not None:
                at_work[worker].append(shard)
        worker = chosen.choice([worker for worker in alive if at_work[worker]])
        if chosen.random() < 0.1 and n_deaths < 20:
            n_deaths += 1
            _, hopeless = schedule.died(worker)
            assert hopeless is None or n_deaths >= MOST_DEATHS
            alive.remove(worker)
        else:
            shard = at_work[worker].pop(0)
            schedule.done(worker, shard)
            done.append(shard)
    assert sorted(done) == list(n_tokens)
