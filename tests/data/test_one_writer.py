"""The lock of the cache: one writes and the others wait, whatever becomes of the one."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxalign.data import one_writer as locks
from jaxalign.data.one_writer import one_writer
from jaxalign.errors import DataError

# As a process that tokenizes, and says when it has begun.
HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture
def make(tmp_path):
    """Makes the file as `open_or_write` does: `make(body)` gives its text; `make.said`, what was said."""
    file, said = tmp_path / "x.arrow", []

    def made(body):
        if not file.exists():
            with one_writer(file, said.append, "waiting"):
                if not file.exists():
                    file.write_text(body())
        return file.read_text()

    made.said, made.lock = said, tmp_path / ".x.arrow.lock"
    return made


def soon(condition):
    """Whether it holds within ten seconds."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_of_several_one_makes_the_file_and_the_others_wait_for_it(make):
    made = []

    def body():
        assert soon(lambda: make.said == ["waiting"] * 3)
        made.append(1)
        return "rows"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: make(body), range(4))) == ["rows"] * 4
    assert len(made) == 1
    assert not make.lock.exists()


def test_a_process_that_is_killed_leaves_the_lock_to_the_next(make):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(make.lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"begun\n"
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(make, lambda: "rows")
            assert soon(lambda: make.said) and not waits.done()
            holder.kill()
            assert waits.result(timeout=10) == "rows"
    finally:
        holder.kill()
        holder.communicate()
    assert not make.lock.exists()


def test_who_waited_ends_by_the_same_line_and_who_comes_later_tries_again(make, monkeypatch):
    tries, write = [], os.write

    def last(descriptor, text):
        # Were it killed now, nobody would find the message that comes later.
        assert not make.lock.exists()
        return write(descriptor, text)

    monkeypatch.setattr(locks.os, "write", last)

    def body():
        tries.append(1)
        assert soon(lambda: make.said == ["waiting"] * 2)
        raise DataError("rows.jsonl:4: é is no row")

    def failed(_):
        with pytest.raises(DataError, match=r"^rows\.jsonl:4: é is no row$"):
            make(body)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(failed, range(3)))
    assert len(tries) == 1
    assert make(lambda: "rows") == "rows"


def test_an_end_that_is_no_error_of_the_user_is_the_next_ones_chance(make):
    begun = threading.Event()

    def stopped():
        begun.set()
        assert soon(lambda: make.said)
        raise SystemExit(143)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(make, stopped)
        assert begun.wait(10)  # the file of the lock is there before the lock is held
        second = pool.submit(make, lambda: "rows")
        with pytest.raises(SystemExit):
            first.result()
        assert second.result() == "rows"


def test_without_locks_each_makes_the_file(make, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refused)
    both = threading.Barrier(2, timeout=10)

    def body():
        both.wait()
        return "rows"

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: make(body), range(2))) == ["rows"] * 2
    assert len(make.said) == 2 and "no file locks (No locks available)" in make.said[0]
    assert not make.lock.exists()


def test_a_failure_takes_away_no_lock_of_a_later_one(make):
    def fails():
        make.lock.unlink()  # as a sweep of old files may
        make.lock.write_text("")
        raise DataError("no row")

    with pytest.raises(DataError):
        make(fails)
    assert make.lock.exists()
