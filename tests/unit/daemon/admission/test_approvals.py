import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentd.daemon.admission import approvals as module
from agentd.daemon.admission.approval_ends import decided
from agentd.daemon.admission.approvals import KEPT_SECONDS, Approvals
from agentd.daemon.config.schema import ApprovalSettings as Settings
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import ApprovalRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.errors import Conflict, Forbidden, Full, InvalidInput, NotFound, QuotaExceeded
from agentd.model.principal import Principal, local

ALICE = Principal("alice", frozenset({"run", "read"}), "key")
BOB = Principal("bob", frozenset({"approve", "read"}), "key")
CAROL = Principal("carol", frozenset({"run", "read"}), "key")
BOTH = Principal("dave", frozenset({"run", "read", "approve"}), "key")
ASKED = {"capability": "shell.exec.v1", "parameters": {"command": ["rm", "-r", "/x"]}}


class Clock:
    now = 1_764_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def approvals(store, clock):
    return Approvals(store, Settings, clock, clock)


def until(condition):
    for _ in range(24000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not come")


@pytest.mark.parametrize(("allow", "state"), [(True, "approved"), (False, "denied")])
def test_who_waits_learns_what_was_decided(approvals, store, allow, state):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    assert (asked.state, asked.expires - asked.created) == ("pending", 600)
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(approvals.wait(asked.id)))
    waiter.start()
    assert [a.id for a in approvals.ls(BOB)] == [asked.id]
    made = approvals.decide(BOB, asked.id, allow, "because")
    waiter.join()
    assert seen == [made]
    assert (made.state, made.decided_by, made.note) == (state, "bob", "because")
    assert made.asked == ASKED and made.request == "req-1"
    assert store.get(ApprovalRecord, asked.id).state == state
    assert approvals.wait(asked.id) == made


def test_nobody_decides_on_their_own(approvals, store, clock):
    asked = approvals.ask(ASKED, BOTH, "req-1")
    for allow in (True, False):
        with pytest.raises(Forbidden, match="dave asked for this, and cannot decide on it"):
            approvals.decide(BOTH, asked.id, allow)
    for admin in (local("dave"), Principal("dave", frozenset({"approve"}), "signed")):
        with pytest.raises(Forbidden):  # however they prove who they are
            approvals.decide(admin, asked.id, True)
    assert approvals.wait(asked.id, 0).state == "pending"
    lenient = Approvals(store, lambda: Settings(self_approve=True), clock, clock)
    asked = lenient.ask(ASKED, BOTH, "req-2")
    assert lenient.decide(BOTH, asked.id, True).state == "approved"


def test_the_scope_decides_who_may(approvals):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    only = Principal("erin", frozenset({"approve"}), "key")
    assert approvals.ls(only) == [approvals.get(only, asked.id)]
    with pytest.raises(Forbidden, match="lacks the scope 'approve'"):
        approvals.decide(CAROL, asked.id, True)
    assert approvals.wait(asked.id, 0).state == "pending"
    assert approvals.decide(local("root"), asked.id, True).state == "approved"


def test_what_is_anothers_is_not_seen_but_by_who_may_approve(approvals):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    assert approvals.get(ALICE, asked.id).id == asked.id
    assert [a.id for a in approvals.ls(ALICE)] == [asked.id]
    assert approvals.get(BOB, asked.id).id == asked.id
    assert approvals.ls(CAROL) == []
    for id_ in (asked.id, "apr-none"):
        with pytest.raises(NotFound):
            approvals.get(CAROL, id_)
    with pytest.raises(NotFound):
        approvals.decide(BOB, "apr-none", True)
    with pytest.raises(Forbidden):
        approvals.ls(Principal("x", frozenset({"run"}), "key"))


def test_a_decision_is_for_good(approvals):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    approvals.decide(BOB, asked.id, False)
    with pytest.raises(Conflict, match="is denied"):
        approvals.decide(BOB, asked.id, True)
    approvals.withdraw(asked.id)
    assert approvals.wait(asked.id).state == "denied"


def test_time_ends_it(approvals, clock, store):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    clock.now += 599
    assert approvals.wait(asked.id, 0).state == "pending"
    clock.now += 1
    with pytest.raises(Conflict, match="is expired"):
        approvals.decide(BOB, asked.id, True)
    assert approvals.get(ALICE, asked.id).state == "expired"
    assert approvals.wait(asked.id).state == "expired"
    assert store.get(ApprovalRecord, asked.id).note == "nobody decided in time"


def test_a_clock_that_is_set_back_gives_no_more_time(store, clock):
    steady = Clock()
    approvals = Approvals(store, Settings, clock, steady)
    asked = approvals.ask(ASKED, ALICE, "req-1")
    clock.now -= 86400
    steady.now += 600
    assert approvals.wait(asked.id).state == "expired"
    with pytest.raises(Conflict):
        approvals.decide(BOB, asked.id, True)


def test_a_request_may_ask_for_less_time_and_not_for_more(approvals):
    short = approvals.ask(ASKED, ALICE, "r", ttl=5)
    long = approvals.ask(ASKED, ALICE, "r", ttl=5000)
    assert (short.expires - short.created, long.expires - long.created) == (5, 600)


def test_what_nobody_waits_for_any_more_cannot_be_approved(approvals):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    assert approvals.wait(asked.id, timeout=0.001).state == "pending"
    approvals.withdraw(asked.id)
    approvals.withdraw(asked.id)
    with pytest.raises(Conflict, match="is withdrawn: its request has gone"):
        approvals.decide(BOB, asked.id, True)


def test_what_has_expired_stays_so(approvals, clock, store):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    clock.now += 600
    assert approvals.get(ALICE, asked.id).state == "expired"
    approvals.withdraw(asked.id)
    assert store.get(ApprovalRecord, asked.id).state == "expired"


def test_a_restart_ends_what_waited_and_says_so(store, approvals, clock):
    waited = approvals.ask(ASKED, ALICE, "req-1")
    done = approvals.ask(ASKED, ALICE, "req-2")
    approvals.decide(BOB, done.id, True)
    again = Approvals(store, Settings, clock, clock)
    found = again.get(ALICE, waited.id)
    assert (found.state, found.note) == ("expired", "the daemon ended while it waited")
    with pytest.raises(Conflict, match="the daemon ended while it waited"):
        again.decide(BOB, waited.id, True)
    assert again.get(ALICE, done.id).state == "approved"


def test_the_daemons_end_lets_nobody_wait(approvals):
    asked = approvals.ask(ASKED, ALICE, "req-1")
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(approvals.wait(asked.id)))
    waiter.start()
    approvals.close()
    approvals.close()
    waiter.join()
    assert (seen[0].state, seen[0].note) == ("expired", "the daemon was about to end")
    with pytest.raises(Full, match="about to end"):
        approvals.ask(ASKED, ALICE, "req-2")


def test_what_waits_is_bounded(store, clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_OF_ONE", 2)
    approvals = Approvals(store, lambda: Settings(max=3), clock, clock)
    first = approvals.ask(ASKED, ALICE, "r")
    approvals.ask(ASKED, ALICE, "r")
    with pytest.raises(QuotaExceeded, match="2 requests of alice wait"):
        approvals.ask(ASKED, ALICE, "r")
    approvals.ask(ASKED, CAROL, "r")
    with pytest.raises(Full, match="3 requests wait"):
        approvals.ask(ASKED, BOTH, "r")
    approvals.decide(BOB, first.id, True)
    assert approvals.ask(ASKED, BOTH, "r")


def test_of_what_waits_one_principal_leaves_others_a_share(store, clock):
    approvals = Approvals(store, lambda: Settings(max=8), clock, clock)
    for _ in range(4):
        approvals.ask(ASKED, ALICE, "r")
    with pytest.raises(QuotaExceeded, match="4 requests of alice wait"):
        approvals.ask(ASKED, ALICE, "r")
    for _ in range(2):
        approvals.ask(ASKED, CAROL, "r")
    with pytest.raises(QuotaExceeded, match="2 requests of carol wait"):
        approvals.ask(ASKED, CAROL, "r")
    approvals.ask(ASKED, BOTH, "r")


def test_what_is_kept_is_bounded(store, clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_OF_ONE", 2)
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    approvals = Approvals(store, Settings, clock, clock)
    waits = approvals.ask(ASKED, ALICE, "r").id
    ended = []
    for _ in range(3):
        clock.now += 1
        ended.append(approvals.ask(ASKED, ALICE, "r").id)
        approvals.withdraw(ended[-1])
    assert _kept(store) == {waits, ended[-1]}
    other = approvals.ask(ASKED, CAROL, "r").id
    third = approvals.ask(ASKED, BOTH, "r").id  # the one that has the most gives up its oldest
    assert _kept(store) == {waits, other, third}
    for id_ in (waits, other, third):
        approvals.withdraw(id_)
    assert approvals.sweep(clock.now) == 0
    clock.now += KEPT_SECONDS + 601
    assert approvals.sweep(clock.now) == 3
    assert approvals.ask(ASKED, ALICE, "r")


def _kept(store):
    return {record.id for record in store.find(ApprovalRecord)}


def test_a_place_is_given_back_where_the_store_refuses(approvals, store, monkeypatch):
    monkeypatch.setattr(module, "MAX_OF_ONE", 1)

    def refuse(work, synced=True):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "write", refuse)
        for _ in range(3):
            with pytest.raises(StoreError):
                approvals.ask(ASKED, ALICE, "r")
    asked = approvals.ask(ASKED, ALICE, "r")
    with monkeypatch.context() as patched:
        patched.setattr(store, "write", refuse)
        with pytest.raises(StoreError):  # not decided: nobody goes on
            approvals.decide(BOB, asked.id, True)
        assert approvals.wait(asked.id, 0).state == "pending"


def test_the_sweep_ends_what_is_overdue(approvals, clock, store):
    asked = approvals.ask(ASKED, ALICE, "r")
    clock.now += 601
    assert approvals.sweep(clock.now) == 0
    assert store.get(ApprovalRecord, asked.id).state == "expired"


def test_what_nobody_could_read_is_not_asked(approvals):
    with pytest.raises(InvalidInput, match="nobody could read it"):
        approvals.ask({"x": "y" * module.MAX_ASKED}, ALICE, "r")
    with pytest.raises(InvalidInput, match="at most 500"):
        approvals.decide(BOB, approvals.ask(ASKED, ALICE, "r").id, True, "x" * 501)


def test_what_waits_is_listed_first_and_what_ended_long_ago_no_more(approvals, clock):
    ids = []
    for _ in range(3):
        ids.append(approvals.ask(ASKED, ALICE, "r").id)
        clock.now += 1
    approvals.decide(BOB, ids[0], True)
    assert [a.id for a in approvals.ls(BOB)] == [ids[1], ids[2], ids[0]]
    clock.now += 3600
    assert [a.id for a in approvals.ls(BOB)] == [ids[1], ids[2]]
    assert {a.state for a in approvals.ls(BOB)} == {"expired"}


def test_of_many_decisions_one_counts(approvals):
    asked = approvals.ask(ASKED, ALICE, "r")
    gate, said = threading.Barrier(8), []

    def decide(number):
        gate.wait()
        try:
            said.append(approvals.decide(BOB, asked.id, number % 2 == 0, str(number)))
        except Conflict:
            said.append(None)

    threads = [threading.Thread(target=decide, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = [view for view in said if view is not None]
    assert approvals.wait(asked.id) == made


@pytest.mark.parametrize("state", ["approved", "denied", "expired", "withdrawn", "anything"])
def test_only_what_is_pending_can_be_decided(state):
    record = ApprovalRecord(
        id="a", principal="p", request="r", asked={}, state=state, created=1.0, expires=9.0
    )
    with pytest.raises(Conflict):
        decided(record, "bob", True, "", 2.0)


class Lives(RuleBasedStateMachine):
    """Nothing is ever approved but by one decision of another, in time, while it waited."""

    @initialize()
    def start(self):
        import tempfile

        self.folder = tempfile.TemporaryDirectory(prefix="agentd-approvals-")
        self.store = SqliteStore(self.folder.name)
        self.clock = Clock()
        self.allowed, self.ended, self.ids = set(), {}, []
        self.come_up()

    def come_up(self):
        self.approvals = Approvals(self.store, lambda: Settings(max=6), self.clock, self.clock)

    @rule(who=st.sampled_from([ALICE, CAROL, BOTH]))
    def ask(self, who):
        try:
            self.ids.append(self.approvals.ask(ASKED, who, "r").id)
        except Full:
            own = self.approvals._of[who.name]
            assert own >= 6 - len(self.approvals._parked)

    @rule(data=st.data(), who=st.sampled_from([ALICE, BOB, BOTH]), allow=st.booleans())
    def decide(self, data, who, allow):
        if self.ids:
            id_ = data.draw(st.sampled_from(self.ids))
            before = self.approvals._get(id_)
            try:
                self.approvals.decide(who, id_, allow)
            except (Conflict, Forbidden):
                return
            assert before.state == "pending" and self.clock.now < before.expires
            assert who.may("approve") and who.name != before.principal
            if allow:
                self.allowed.add(id_)

    @rule(data=st.data())
    def withdraw(self, data):
        if self.ids:
            self.approvals.withdraw(data.draw(st.sampled_from(self.ids)))

    @rule(seconds=st.sampled_from([1, 300, 600]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def sweep(self):
        self.approvals.sweep(self.clock.now)

    @rule()
    def restart(self):
        self.come_up()

    @invariant()
    def what_ended_stays_so_and_places_are_counted(self):
        if not hasattr(self, "approvals"):
            return
        for id_ in self.ids:
            view = self.approvals.get(local("root"), id_)
            assert (view.state == "approved") == (id_ in self.allowed)
            if view.state != "pending":
                assert self.ended.setdefault(id_, view.state) == view.state
        parked = self.approvals._parked
        assert self.approvals._of == Counter(p.principal for p in parked.values())
        waiting = {r.id for r in self.store.find(ApprovalRecord, state="pending")}
        assert waiting == set(parked)

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestLives = Lives.TestCase


def test_an_act_of_a_sandbox_that_has_just_ended_waits_for_nobody(approvals):
    approvals.sandbox_ended("sbx-1", "its sandbox has ended with its lease")
    asked = approvals.ask({**ASKED, "sandbox": "sbx-1"}, ALICE, "r")
    found = approvals.wait(asked.id, 0)
    assert (found.state, found.note) == ("withdrawn", "its sandbox has ended with its lease")
    other = approvals.ask({**ASKED, "sandbox": "sbx-2"}, ALICE, "r")
    assert approvals.wait(other.id, 0).state == "pending"


@pytest.mark.parametrize("end", ["its sandbox", "the daemon"])
def test_one_that_ends_as_it_is_written_has_ended(approvals, store, monkeypatch, end):
    """Whoever waited for it was told again and again that it is pending."""
    write = store.write

    def ending(work, **options):
        monkeypatch.undo()
        if end == "the daemon":
            approvals.close()
        else:
            approvals.sandbox_ended("sbx-1")
        return write(work, **options)

    monkeypatch.setattr(store, "write", ending)
    asked = approvals.ask({**ASKED, "sandbox": "sbx-1"}, ALICE, "r")
    state = "expired" if end == "the daemon" else "withdrawn"
    assert approvals.wait(asked.id, 0).state == state


def test_what_waits_is_kept_though_the_clock_leaps(store, clock):
    """As that of a machine does that has slept for days."""
    approvals = Approvals(store, Settings, clock, Clock())
    asked = approvals.ask(ASKED, ALICE, "r")
    clock.now += 10 * KEPT_SECONDS
    assert approvals.sweep(clock.now) == 0
    assert approvals.decide(BOB, asked.id, True).state == "approved"
    assert approvals.sweep(clock.now) == 1
