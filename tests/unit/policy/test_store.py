import os
from pathlib import Path

import pytest

from agentd.model.errors import InvalidInput
from agentd.policy import source
from agentd.policy.build import Cache
from agentd.policy.errors import BundleError
from agentd.policy.example import example
from agentd.policy.store import PinMismatch

YES, NO = 'decision := {"allow": true}', 'decision := {"allow": false}'
CALL = example("x.v1", {})


def test_a_reload_takes_what_lies_there(bundle, store):
    opened = store(bundle(YES))
    before = opened.digest
    assert opened.decide(CALL).allow
    bundle(NO)
    assert opened.decide(CALL).allow
    after = opened.reload()
    assert after == opened.digest != before
    decision = opened.decide(CALL)
    assert not decision.allow and decision.bundle == after


@pytest.mark.parametrize("broken", ["decision := {{", 'decision := {"allow": opa.runtime()}'])
def test_a_reload_that_fails_keeps_the_old_one(bundle, store, broken):
    opened = store(bundle(YES))
    before = opened.digest
    bundle(broken)
    with pytest.raises(BundleError):
        opened.reload()
    assert opened.digest == before
    assert opened.decide(CALL).allow
    assert opened.decide(example("y.v1", {})).allow


def test_a_reload_may_be_of_another_place(bundle, store):
    opened = store(bundle(YES))
    opened.reload(bundle(NO, name="other"))
    assert not opened.decide(CALL).allow
    with pytest.raises(BundleError):
        opened.reload("/nowhere")
    opened.reload()
    assert not opened.decide(CALL).allow


def test_every_worker_takes_the_new_one(bundle, store):
    opened = store(bundle(YES), workers=2, remember=False)
    pool = opened._pool
    with pool.borrow(1):
        assert opened.decide(CALL).allow
    assert opened.decide(CALL).allow
    bundle(NO)
    opened.reload()
    with pool.borrow(1):
        assert not opened.decide(CALL).allow
    assert not opened.decide(CALL).allow


def test_a_pin_refuses_every_other_bundle(bundle, store):
    digest = store(bundle(YES)).digest
    for pin in (digest, digest.removeprefix("sha256:"), digest.removeprefix("sha256:").upper()):
        opened = store(bundle(YES), sha256=pin)
    bundle(NO)
    with pytest.raises(PinMismatch, match="is not the one that is expected"):
        store(bundle(NO), sha256=digest)
    with pytest.raises(PinMismatch):
        opened.reload()
    assert opened.decide(CALL).allow


def test_what_was_compiled_is_kept(bundle, store, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    store(bundle(YES), cache=cache)
    monkeypatch.setattr(Cache, "put", None)  # nothing compiles any more
    assert store(bundle(YES), cache=cache).decide(CALL).allow
    assert os.stat(cache).st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in Path(cache).iterdir())


def test_a_cache_keeps_those_that_were_used_last(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("agentd.policy.build.MOST", 2)
    cache, rules = Cache(str(tmp_path / "cache")), ("x := 1", "x := 2", "x := 3")
    first, second, third = (source.read(bundle(rule, name=rule[-1])) for rule in rules)
    for each in (first, second):
        cache.put(each)
        os.utime(cache.get(each).path, (1, 1 if each is first else 2))
    assert cache.get(first) is not None, "which counts as a use"
    cache.put(third)
    assert [cache.get(each) is not None for each in (first, second, third)] == [True, False, True]
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_others_may_write_is_refused(bundle, store, tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(InvalidInput, match="cannot keep policies"):
        store(bundle(YES), cache=str(tmp_path / "cache"))


def test_a_cached_file_that_others_may_write_is_compiled_anew(bundle, store, tmp_path):
    cache = tmp_path / "cache"
    store(bundle(YES), cache=str(cache))
    for path in cache.iterdir():
        path.write_bytes(b"not a bundle")
        path.chmod(0o666)
    assert store(bundle(YES), cache=str(cache)).decide(CALL).allow


def test_a_cached_link_is_not_followed(bundle, store, tmp_path):
    cache = tmp_path / "cache"
    store(bundle(YES), cache=str(cache))
    for path in list(cache.iterdir()):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    store(bundle(YES), cache=str(cache))
    assert not any(path.is_symlink() for path in cache.iterdir())


def test_nothing_is_left_behind(bundle, store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    opened = store(bundle(YES))
    opened.decide(CALL)
    with opened._pool.borrow(1) as process:
        child = process._child
    opened.close()
    assert child.returncode is not None
    assert list((tmp_path / "temporary").iterdir()) == []
    bundle("decision := {{")
    with pytest.raises(BundleError):
        store(bundle("decision := {{"))
    assert list((tmp_path / "temporary").iterdir()) == []
