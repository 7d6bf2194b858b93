"""Calls in another process: results, state and errors come through, and the process ends."""

import os

import pytest

from s2fpn_lib.benchmark.own_process import OwnProcess


def counter(start):
    state = [start]

    def count():
        state[0] += 1
        return state[0], os.getpid()

    return count


def broken():
    def fail():
        raise ValueError("no such thing")

    return fail


def dying():
    return lambda: os._exit(3)


def test_state_stays_between_calls_in_one_other_process():
    with OwnProcess(counter, start=4) as call:
        (first, pid), (second, again) = call(), call()
        process = call._process
    assert (first, second) == (5, 6)
    assert pid == again != os.getpid()
    assert process.exitcode == 0


def test_an_error_there_is_an_error_here():
    with OwnProcess(broken) as call, pytest.raises(RuntimeError, match="no such thing"):
        call()


def test_a_death_there_is_an_error_here():
    with OwnProcess(dying) as call, pytest.raises(RuntimeError, match="process died"):
        call()
