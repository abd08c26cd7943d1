"""Replays, and all that an attacker may do to the clock and the machine in between."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from agentd.auth.signing import RequestStale
from agentd.daemon.service import nonces as module
from agentd.daemon.service.nonces import WINDOW_SECONDS, StoredNonces
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import NonceRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.errors import Full

NOW = 1_764_000_000.0
KEY = "ed25519:" + "a" * 32


@contextlib.contextmanager
def opened(folder, now=NOW, boot="boot-1", orderly=True):
    """A daemon's life. One that does not end in order is as after kill -9."""
    store = SqliteStore(str(folder))
    try:
        found = StoredNonces(store, now, boot)
        yield found
        if orderly:
            found.close()
    finally:
        store.close()


def stale(found, nonce, issued):
    with pytest.raises(RequestStale):
        found.first_use(KEY, nonce, issued)


def test_a_nonce_is_used_once_by_each_key(tmp_path):
    with opened(tmp_path) as found:
        assert found.first_use(KEY, "n1", NOW)
        assert not found.first_use(KEY, "n1", NOW)
        assert not found.first_use(KEY, "n1", NOW + 5)
        assert found.first_use(KEY, "n2", NOW)
        assert found.first_use("ed25519:other", "n1", NOW)


def test_of_many_at_once_one_is_the_first(tmp_path):
    with opened(tmp_path) as found, ThreadPoolExecutor(8) as pool:
        gate = threading.Barrier(8)

        def use(round_):
            gate.wait()
            return found.first_use(KEY, f"n{round_ // 8}", NOW)

        won = list(pool.map(use, range(160)))
    assert sum(won) == 20


@pytest.mark.parametrize("orderly", [True, False])
def test_a_restart_of_the_daemon_forgets_nothing_and_refuses_nothing_new(tmp_path, orderly):
    with opened(tmp_path, orderly=orderly) as found:
        assert found.first_use(KEY, "used", NOW + 1)
    with opened(tmp_path, NOW + 2) as found:
        assert not found.first_use(KEY, "used", NOW + 1)
        assert found.first_use(KEY, "waited for the daemon", NOW + 1)


def test_after_a_loss_of_power_nothing_is_taken_that_may_have_been_used(tmp_path):
    """What the store looked like on disk at the last sync is what comes up again."""
    live, kept = tmp_path / "live", tmp_path / "kept"
    with opened(live, orderly=False) as found:
        assert found.first_use(KEY, "synced", NOW + 1)
        shutil.copytree(live, kept)  # the disk
        assert found.first_use(KEY, "lost", NOW + 2)
        assert found.first_use(KEY, "lost, of a fast clock", NOW + WINDOW_SECONDS)
    with opened(kept, NOW + 3, boot="boot-2") as found:
        assert not found._store.get(NonceRecord, KEY, "lost")
        for nonce, issued in [
            ("synced", NOW + 1),
            ("lost", NOW + 2),
            ("lost, of a fast clock", NOW + WINDOW_SECONDS),
        ]:
            stale(found, nonce, issued)
        assert found.first_use(KEY, "new", NOW + 1 + WINDOW_SECONDS)


def test_the_ceiling_is_on_disk_before_what_it_lets_in(tmp_path):
    live = tmp_path / "live"
    with opened(live, orderly=False) as found:
        for step in range(5):
            issued = NOW + step * WINDOW_SECONDS
            commits = found._store.counts().commits
            assert found.first_use(KEY, f"n{step}", issued)
            assert found._store.counts().commits == commits + 1
            copy = tmp_path / f"copy-{step}"
            shutil.copytree(live, copy)
            with opened(copy, NOW, boot="boot-2") as again:
                stale(again, "unsynced", issued + WINDOW_SECONDS - 0.001)
                assert again.first_use(KEY, "new", issued + WINDOW_SECONDS)


def test_only_what_reaches_the_ceiling_waits_for_the_disk(tmp_path, monkeypatch):
    with opened(tmp_path) as found:
        synced = []
        real = found._store.write

        def write(work, *, synced_=synced, synced=True):
            synced_.append(synced)
            return real(work, synced=synced)

        monkeypatch.setattr(found._store, "write", write)
        for number in range(10):
            assert found.first_use(KEY, f"n{number}", NOW + number)
        assert synced == [True] + [False] * 9
        synced.clear()
        assert found.first_use(KEY, "later", NOW + WINDOW_SECONDS)
        assert synced == [True]


def test_an_orderly_end_of_the_machine_costs_nothing(tmp_path):
    with opened(tmp_path) as found:
        assert found.first_use(KEY, "used", NOW + 1)
    with opened(tmp_path, NOW + 60, boot="boot-2") as found:
        assert not found.first_use(KEY, "used", NOW + 1)
        assert found.first_use(KEY, "signed meanwhile", NOW + 2)


def test_nothing_is_used_after_the_end(tmp_path):
    with opened(tmp_path) as found:
        assert found.first_use(KEY, "used", NOW + 1)
        found.close()
        with pytest.raises(StoreError, match="about to end"):
            found.first_use(KEY, "late", NOW + 2)


def test_a_clock_that_was_set_back_brings_nothing_back(tmp_path):
    with opened(tmp_path) as found:
        assert found.first_use(KEY, "used", NOW + 1)
        assert found.first_use(KEY, "fresh", NOW + 400)
        assert found.forget(NOW + 300) == 1
        stale(found, "used", NOW + 1)
    with opened(tmp_path, NOW - 86400) as found:
        stale(found, "used", NOW + 1)
        assert not found.first_use(KEY, "fresh", NOW + 400)
        assert found.first_use(KEY, "new", NOW + 401)


def test_max_age_that_is_raised_later_brings_nothing_back(tmp_path):
    with opened(tmp_path) as found:
        assert found.first_use(KEY, "used", NOW + 1)
        assert found.forget(NOW + 2) == 1  # max_age was small
        stale(found, "used", NOW + 1)


def test_a_clock_that_leapt_ahead_for_a_moment_does_not_lock_everybody_out(tmp_path):
    with opened(tmp_path) as found:
        assert found.first_use(KEY, "used", NOW + 1)
        assert found.forget(NOW + 10 * 365 * 86400) == 1
        stale(found, "used", NOW + 1)
        assert found.first_use(KEY, "new", NOW + 1 + WINDOW_SECONDS)


def test_a_new_store_takes_nothing_from_before_it(tmp_path):
    with opened(tmp_path / "first", NOW) as found:
        assert found.first_use(KEY, "used", NOW + 1)
    with opened(tmp_path / "instead", NOW + 2) as found:
        stale(found, "used", NOW + 1)


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_OF_ONE", 3)
    monkeypatch.setattr(module, "MAX_ALL", 6)
    with opened(tmp_path) as found:
        for number in range(3):
            assert found.first_use(KEY, f"n{number}", NOW + number)
        with pytest.raises(Full, match="of this key"):
            found.first_use(KEY, "n3", NOW + 3)
        assert not found.first_use(KEY, "n0", NOW)  # it is still known
        assert found.first_use("other", "n0", NOW)
    with opened(tmp_path) as found:
        assert found.first_use("other", "n1", NOW + 9)
        assert found.first_use("fourth", "n0", NOW + 9)
        with pytest.raises(Full):
            found.first_use("third", "n0", NOW + 9)
        assert found.forget(NOW + 2) == 3
        assert found.first_use(KEY, "n4", NOW + 9)
        assert found.first_use("third", "n0", NOW + 9)


def test_one_key_leaves_others_a_share(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ALL", 8)
    with opened(tmp_path) as found:
        for number in range(4):
            assert found.first_use(KEY, f"n{number}", NOW + number)
        with pytest.raises(Full, match="4 signed requests of this key"):
            found.first_use(KEY, "n4", NOW + 4)
        assert found.first_use("other", "n0", NOW) and found.first_use("other", "n1", NOW)
        with pytest.raises(Full, match="2 signed requests of this key"):
            found.first_use("other", "n2", NOW)
        assert found.first_use("third", "n0", NOW)


def test_it_forgets_in_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    with opened(tmp_path) as found:
        for number in range(7):
            assert found.first_use(KEY, f"n{number}", NOW + number)
        commits = found._store.counts().commits
        assert found.forget(NOW + 5) == 5
        assert found._store.counts().commits == commits + 4
        assert found.forget(NOW + 5) == 0


def test_a_nonce_outlives_a_daemon_that_is_killed(tmp_path):
    code = (
        "import sys\n"
        "from agentd.daemon.service.nonces import StoredNonces\n"
        "from agentd.daemon.store.sqlite import SqliteStore\n"
        f"found = StoredNonces(SqliteStore({str(tmp_path)!r}), {NOW}, 'boot-1')\n"
        f"found.first_use({KEY!r}, 'first', {NOW})\n"
        f"found.first_use({KEY!r}, 'second', {NOW + 1})\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as daemon:
        assert daemon.stdout is not None and daemon.stdout.readline() == b"done\n"
        os.kill(daemon.pid, signal.SIGKILL)
    with opened(tmp_path, NOW + 2) as found:
        assert not found.first_use(KEY, "first", NOW)
        assert not found.first_use(KEY, "second", NOW + 1)


def test_the_boot_is_the_kernels():
    assert len(module._boot_id()) == 36
    assert module._boot_id() == module._boot_id()


class Attack(RuleBasedStateMachine):
    """Requests, trims at any clock, restarts and losses of power: none is let in twice."""

    def __init__(self):
        super().__init__()
        self.used = set()
        self.boot = 0

    @initialize()
    def start(self):
        import tempfile

        self.place = tempfile.mkdtemp(prefix="agentd-nonces-")
        self.folder = os.path.join(self.place, "0")
        self.come_up()

    def come_up(self):
        self.store = SqliteStore(self.folder)
        self.found = StoredNonces(self.store, 0.0, f"boot-{self.boot}")
        self.snapshot()

    def snapshot(self):
        """What is on disk for sure: kept whenever something was synced."""
        self.disk = os.path.join(self.place, f"disk-{os.urandom(4).hex()}")
        shutil.copytree(self.folder, self.disk)

    @rule(nonce=st.integers(0, 5), issued=st.integers(0, 40).map(lambda n: n * 7.0))
    def use(self, nonce, issued):
        ceiling = self.found._ceiling
        try:
            first = self.found.first_use("key", f"n{nonce}", issued)
        except RequestStale:
            return
        if issued >= ceiling:
            self.snapshot()
        assert not (first and (nonce, issued) in self.used)
        if first:
            self.used.add((nonce, issued))

    @rule(before=st.integers(-50, 500))
    def trim(self, before):
        self.found.forget(float(before))

    @rule(orderly=st.booleans())
    def restart(self, orderly):
        if orderly:
            self.found.close()
        self.store.close()
        self.come_up()

    @rule()
    def lose_power(self):
        self.store.close()
        self.folder = self.disk
        self.boot += 1
        self.come_up()

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.place)


Attack.TestCase.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
TestAttack = Attack.TestCase
