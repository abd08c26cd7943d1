import errno
import hmac
import re
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.auth import keys
from agentd.auth.keys import KeyProvider, KeyRecord, KeyService
from agentd.model.credential import Credential
from agentd.model.errors import Forbidden, InvalidInput, NotFound, Refused, Unauthenticated
from agentd.model.principal import SCOPES, Principal

OPS = Principal("ops", frozenset({"admin"}), "peer")
TEAM = Principal("team", frozenset({"run", "files", "keys"}), "jwt")


@dataclass
class Memory:
    records: dict[str, KeyRecord] = field(default_factory=dict)
    touched: list[tuple[str, float]] = field(default_factory=list)

    def add(self, record):
        self.records[record.id] = record

    def get(self, key_id):
        return self.records.get(key_id)

    def list(self):
        return list(self.records.values())

    def revoke(self, key_id, when):
        record = self.records[key_id]
        if record.revoked is None:
            self.records[key_id] = msgspec.structs.replace(record, revoked=when)

    def remove(self, key_id):
        del self.records[key_id]

    def touch(self, key_id, when):
        self.touched.append((key_id, when))
        self.records[key_id] = msgspec.structs.replace(self.records[key_id], last_used=when)


@dataclass
class Place:
    now: float = 1000.0
    store: Memory = field(default_factory=Memory)

    def service(self, **bounds):
        return KeyService(self.store, clock=lambda: self.now, **bounds)

    def enter(self, key, header="api_key"):
        value = key if header == "api_key" else f"Bearer {key}"
        return KeyProvider(self.store, lambda: self.now).authenticate(Credential(**{header: value}))


@pytest.fixture
def place():
    return Place()


@pytest.mark.parametrize("header", ["api_key", "authorization"])
def test_a_key_opens_what_it_was_made_for(place, header):
    made = place.service().create(OPS, "ci", ["run", "files"])
    assert re.fullmatch(r"agd_[a-z2-7]{12}_[a-z2-7]{52}", made.key)
    who = place.enter(made.key, header)
    assert who == Principal("ci", frozenset({"run", "files"}), "key", made.record.id)


def test_the_key_is_shown_once_and_kept_nowhere(place):
    made = place.service().create(OPS, "ci", ["run"])
    secret = made.key.rpartition("_")[2]
    kept = msgspec.json.encode(place.store.list()).decode() + repr(place.store)
    assert secret not in kept and secret not in repr(made)
    listed = place.service().ls(OPS)
    assert [r.id for r in listed] == [made.record.id]
    assert listed[0].digest == b"" and place.store.get(made.record.id).digest != b""


def test_every_key_is_another(place):
    made = {place.service().create(OPS, "ci", ["run"]).key for _ in range(50)}
    assert len(made) == 50


def test_a_wrong_secret_and_an_unknown_id_read_the_same(place):
    made = place.service().create(OPS, "ci", ["run"])
    wrong_secret = made.key[:-52] + ("a" * 52)
    unknown = "agd_" + "a" * 12 + made.key[-53:]
    errors = set()
    for key in (wrong_secret, unknown, "agd_", "x", "", "agd_ü", "agd_\ud800", made.key + "\n"):
        with pytest.raises(Unauthenticated) as caught:
            place.enter(key)
        errors.add(str(caught.value))
    assert len(errors) == 1


@given(at=st.integers(0, 68), to=st.sampled_from("abcxyz234567_A"))
def test_no_other_character_will_do(at, to):
    place = Place()
    key = place.service().create(OPS, "ci", ["run"]).key
    other = key[:at] + to + key[at + 1 :]
    if other != key:
        with pytest.raises(Unauthenticated):
            place.enter(other)


@pytest.mark.parametrize("known", [True, False])
def test_digests_are_compared_in_constant_time_whether_or_not_there_is_a_key(
    place, monkeypatch, known
):
    made = place.service().create(OPS, "ci", ["run"])
    compared = []
    real = hmac.compare_digest

    def compare(a, b):
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    key = made.key if known else "agd_" + "a" * 12 + made.key[-53:]
    try:
        place.enter(key)
    except Unauthenticated:
        assert not known
    expected = made.record.digest if known else bytes(32)
    assert compared == [(keys.digest(key), expected)]


def test_the_digest_decides_and_nothing_else(place, monkeypatch):
    made = place.service().create(OPS, "ci", ["run"])
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: False)
    with pytest.raises(Unauthenticated):
        place.enter(made.key)


def test_an_absent_key_is_not_opened_by_its_empty_digest(place, monkeypatch):
    monkeypatch.setattr(keys, "digest", lambda key: bytes(32))
    with pytest.raises(Unauthenticated):
        place.enter("agd_" + "a" * 12 + "_" + "a" * 52)


def test_a_revoked_key_holds_no_longer(place):
    made = place.service().create(OPS, "ci", ["run"])
    assert place.service().revoke(OPS, made.record.id) == [made.record.id]
    with pytest.raises(Unauthenticated, match="was revoked"):
        place.enter(made.key)
    place.now += 5
    place.service().revoke(OPS, made.record.id)
    assert place.store.get(made.record.id).revoked == 1000.0


def test_a_key_ends_at_its_time(place):
    made = place.service().create(OPS, "ci", ["run"], ttl=10)
    place.now = 1009.9
    assert place.enter(made.key)
    place.now = 1010.0
    with pytest.raises(Unauthenticated, match="has expired"):
        place.enter(made.key)


@pytest.mark.parametrize(
    ("ttl", "default", "most", "expires"),
    [
        (None, None, None, None),
        (5, None, None, 1005),
        (None, 7, None, 1007),
        (None, 7, 3, 1003),
        (None, None, 3, 1003),
        (2, 7, 3, 1002),
    ],
)
def test_how_long_a_key_lives(place, ttl, default, most, expires):
    service = place.service(default_ttl=default, max_ttl=most)
    assert service.create(OPS, "ci", ["run"], ttl=ttl).record.expires == expires


@pytest.mark.parametrize("ttl", [0, -1, 4, float("nan")])
def test_a_life_that_is_not_allowed(place, ttl):
    with pytest.raises(InvalidInput):
        place.service(max_ttl=3).create(OPS, "ci", ["run"], ttl=ttl)
    assert place.store.records == {}


all_scopes = st.sets(st.sampled_from(sorted(SCOPES)), min_size=1)


@given(held=all_scopes, asked=all_scopes)
def test_scopes_are_never_widened(held, asked):
    place = Place()
    asker = Principal("team", frozenset(held | {"keys"}), "jwt")
    try:
        key = place.service().create(asker, "ci", asked).key
    except Forbidden:
        assert not all(asker.may(scope) for scope in asked)
        return
    who = place.enter(key)
    assert all(asker.may(scope) for scope in SCOPES if who.may(scope))
    assert who.scopes == asked


def test_scopes_that_a_later_version_stored_mean_nothing(place):
    made = place.service().create(OPS, "ci", ["run"])
    record = msgspec.structs.replace(made.record, scopes=("run", "rule-the-world"))
    place.store.add(record)
    assert place.enter(made.key).scopes == {"run"}


def test_who_is_no_admin_makes_keys_for_themselves_alone(place):
    service = place.service()
    assert service.create(TEAM, "ops", ["run"]).record.principal == "team"
    with pytest.raises(Forbidden, match="cannot create a key for ops"):
        service.create(TEAM, "ci", ["run"], principal="ops")
    assert service.create(OPS, "ci", ["run"], principal="uid:1000").record.principal == "uid:1000"
    with pytest.raises(Forbidden, match="lacks the scope 'keys'"):
        service.create(Principal("x", frozenset({"run"}), "key"), "ci", ["run"])


@pytest.mark.parametrize("name", ["", "a b", "uid:0", "jwt:a:b", "-a", "a" * 65, "ä", "a\n"])
def test_names_that_are_none(place, name):
    with pytest.raises(InvalidInput, match="no name for a key"):
        place.service().create(OPS, name, ["run"])


@pytest.mark.parametrize("who", ["a b", "-a", "a" * 257, "ä", "a\n", ":a", "a\x1b[0m"])
def test_principals_that_are_none(place, who):
    with pytest.raises(InvalidInput, match="no name for a principal"):
        place.service().create(OPS, "ci", ["run"], principal=who)
    assert not place.store.records


def test_who_looks_a_key_up_needs_the_scope_and_gets_no_hash(place):
    service = place.service()
    made = service.create(TEAM, "mine", ["run"])
    assert service.get(TEAM, made.record.id).digest == b""
    assert [r.digest for r in service.ls(TEAM)] == [b""]
    without = Principal("team", frozenset({"run"}), "jwt")
    with pytest.raises(Forbidden, match="lacks the scope 'keys'"):
        service.get(without, made.record.id)
    with pytest.raises(Forbidden, match="lacks the scope 'keys'"):
        service.ls(without)


def test_what_cannot_be_written_down_is_not_done(place):
    """The audit log has it first: a key that nobody could account for is none."""
    service = place.service()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        service.create(OPS, "ci", ["run"], record=full)
    assert not place.store.records
    made = service.create(OPS, "ci", ["run"])
    with pytest.raises(OSError, match="No space"):
        service.revoke(OPS, made.record.id, record=full)
    assert place.enter(made.key)


@pytest.mark.parametrize("scopes", [[], ["run", "fly"]])
def test_scopes_that_are_none(place, scopes):
    with pytest.raises(InvalidInput, match="scope"):
        place.service().create(OPS, "ci", scopes)


def test_others_keys_are_neither_seen_nor_revoked(place):
    service = place.service()
    theirs, own = service.create(OPS, "ci", ["run"]), service.create(TEAM, "mine", ["run"])
    assert [r.name for r in service.ls(TEAM)] == ["mine"]
    assert {r.name for r in service.ls(OPS)} == {"ci", "mine"}
    with pytest.raises(NotFound) as hidden:
        service.revoke(TEAM, theirs.record.id)
    with pytest.raises(NotFound) as absent:
        service.revoke(TEAM, "absent")
    assert str(hidden.value).replace(theirs.record.id, "absent") == str(absent.value)
    assert place.enter(theirs.key) and service.revoke(TEAM, own.record.id)


def test_a_key_falls_with_the_one_it_was_made_with(place):
    service = place.service()
    first = service.create(OPS, "first", ["run", "keys"], ttl=50)
    second = service.create(place.enter(first.key), "second", ["run", "keys"], ttl=100)
    third = service.create(place.enter(second.key), "third", ["run"])
    assert (second.record.expires, third.record.expires) == (1050, 1050)
    assert place.enter(third.key).name == "first"
    assert service.revoke(OPS, first.record.id) == [m.record.id for m in (first, second, third)]
    for made in (first, second, third):
        with pytest.raises(Unauthenticated, match="was revoked"):
            place.enter(made.key)


def test_a_key_made_while_its_parent_is_revoked_is_dead_too(place):
    service = place.service()
    first = service.create(OPS, "first", ["run", "keys"])
    asker = place.enter(first.key)
    second = service.create(asker, "second", ["run"])
    place.store.revoke(first.record.id, 1.0)  # as if the family had been read before
    with pytest.raises(Unauthenticated, match=f"{first.record.id} was revoked, and key"):
        place.enter(second.key)
    with pytest.raises(Unauthenticated, match="was revoked"):
        service.create(asker, "third", ["run"])
    del place.store.records[first.record.id]
    for attempt in (lambda: place.enter(second.key), lambda: service.create(asker, "x", ["run"])):
        with pytest.raises(Unauthenticated, match="is gone"):
            attempt()


def test_a_line_of_keys_is_not_endless(place):
    service = place.service()
    made = service.create(OPS, "k", ["keys"])
    for _ in range(keys.MAX_DEPTH - 1):
        made = service.create(place.enter(made.key), "k", ["keys"])
    with pytest.raises(Forbidden, match="too far"):
        service.create(place.enter(made.key), "k", ["keys"])
    looped = msgspec.structs.replace(made.record, parent=made.record.id)
    place.store.add(looped)
    with pytest.raises(Unauthenticated):
        place.enter(made.key)


@pytest.mark.parametrize("bound", ["MAX_KEYS", "MAX_KEYS_OF_ONE"])
def test_nobody_fills_the_store(place, monkeypatch, bound):
    monkeypatch.setattr(keys, bound, 2)
    service = place.service()
    for _ in range(2):
        service.create(TEAM, "k", ["run"])
    with pytest.raises(Refused, match="2 keys already"):
        service.create(TEAM, "k", ["run"])


@pytest.mark.parametrize("bound", ["MAX_KEYS", "MAX_KEYS_OF_ONE"])
def test_what_ended_first_goes_for_a_new_one(place, monkeypatch, bound):
    monkeypatch.setattr(keys, bound, 2)
    service = place.service()
    kept = service.create(TEAM, "k", ["run"]).record.id
    for _ in range(4):
        place.now += 1
        service.revoke(TEAM, last := service.create(TEAM, "k", ["run"]).record.id)
    assert set(place.store.records) == {kept, last}


def test_the_last_use_is_written_seldom(place):
    made = place.service().create(OPS, "ci", ["run"])
    for moment in (1000, 1001, 1059, 1060, 1061):
        place.now = moment
        place.enter(made.key)
    assert place.store.touched == [(made.record.id, 1000), (made.record.id, 1060)]


@pytest.mark.parametrize("header", ["Basic agd_x", "Bearer ey.x.y", None])
def test_what_is_no_api_key_is_anothers(place, header):
    provider = KeyProvider(place.store)
    assert provider.authenticate(Credential(authorization=header)) is None
