"""The file of secrets: of its user alone, from before a change or from after it, of one version."""

import json
import os
import shutil
from pathlib import Path

import pytest

from agentd.daemon.secrets import SecretStore
from agentd.model.errors import NotFound, SandboxError

VALUE = "a value of the test's own"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "secrets.json"


@pytest.fixture
def store(path: Path) -> SecretStore:
    path.parent.mkdir(mode=0o700)
    return SecretStore(str(path))


def test_what_was_set_is_there_for_the_next_daemon(store: SecretStore, path: Path) -> None:
    store.set("alice", "T", VALUE)
    store.set("bob", "T", VALUE[::-1])
    again = SecretStore(str(path))
    assert again.value("alice", "T").text == VALUE
    assert again.value("bob", "T").text == VALUE[::-1]
    again.remove("alice", "T")
    with pytest.raises(NotFound):
        SecretStore(str(path)).value("alice", "T")
    assert [view.name for view in SecretStore(str(path)).all("bob")] == ["T"]


def test_one_that_cannot_be_written_changes_nothing(store: SecretStore, path: Path) -> None:
    store.set("alice", "T", VALUE)
    shutil.move(path.parent, f"{path.parent}.away")
    for change in (
        lambda: store.set("alice", "T", "another value of the test's"),
        lambda: store.set("alice", "U", VALUE),
        lambda: store.remove("alice", "T"),
    ):
        with pytest.raises(SandboxError, match="cannot write the daemon's secrets") as caught:
            change()
        assert VALUE not in str(caught.value.as_dict())
    assert store.value("alice", "T").text == VALUE
    assert [view.name for view in store.all("alice")] == ["T"]


def test_one_that_others_could_read_is_not_taken(store: SecretStore, path: Path) -> None:
    store.set("alice", "T", VALUE)
    os.chmod(path, 0o640)
    with pytest.raises(SandboxError, match="is not this user's alone") as caught:
        SecretStore(str(path))
    assert "chmod 600" in caught.value.remediation


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives a file away")
def test_one_that_another_user_has_is_not_taken(store: SecretStore, path: Path) -> None:
    store.set("alice", "T", VALUE)
    os.chown(path, 65534, 65534)
    with pytest.raises(SandboxError, match="is not this user's alone"):
        SecretStore(str(path))


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", '{"version": 2, "secrets": []}', '{"version": 1}']
)
def test_one_that_is_not_known_is_not_written_over(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SandboxError, match="no file of secrets that is known"):
        SecretStore(str(path))
    assert path.read_text() == text


def test_a_link_in_its_place_is_not_followed(store: SecretStore, path: Path) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_text("another's")
    path.with_name("secrets.json.new").symlink_to(elsewhere)
    store.set("alice", "T", VALUE)
    assert elsewhere.read_text() == "another's"
    assert json.loads(path.read_text())["secrets"][0]["name"] == "T"
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(SandboxError, match="cannot read"):
        SecretStore(str(path))
