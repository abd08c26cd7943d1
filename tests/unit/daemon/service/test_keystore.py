from pathlib import Path

from agentd.auth.keys import KeyRecord
from agentd.daemon.service.keystore import StoredKeys
from agentd.daemon.store.sqlite import SqliteStore

DAY = 86400.0


def key(id_: str, **fields: object) -> KeyRecord:
    usual: dict[str, object] = {
        "name": "ci",
        "principal": "ci",
        "digest": bytes(32),
        "scopes": ("run", "files"),
        "created": 1.0,
        "created_by": "uid:0",
    }
    return KeyRecord(id=id_, **{**usual, **fields})  # type: ignore[arg-type]


def test_what_was_added_and_revoked_is_there_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    keys = StoredKeys(store)
    first, second = key("a"), key("b", parent="a", expires=9.0)
    keys.add(first)
    keys.add(second)
    keys.revoke("a", 5.0)
    keys.revoke("a", 6.0)  # the first moment counts
    keys.touch("b", 7.0)
    assert keys.get("b") is not None
    store.close()
    again = SqliteStore(str(tmp_path))
    found = StoredKeys(again)
    a, b = found.get("a"), found.get("b")
    again.close()
    assert a is not None and a.revoked == 5.0
    assert b is not None and (b.parent, b.scopes, b.digest) == ("a", ("run", "files"), bytes(32))
    assert found.get("c") is None


def test_keys_that_ended_long_ago_are_forgotten(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    keys = StoredKeys(store)
    keys.add(key("old", expires=10.0))
    keys.add(key("gone", revoked=20.0))
    keys.add(key("lasts"))
    assert keys.forget(50 * DAY) == 0
    assert keys.forget(100 * DAY) == 2
    assert [record.id for record in keys.list()] == ["lasts"]
    assert [record.id for record in StoredKeys(store).list()] == ["lasts"]
    store.close()
