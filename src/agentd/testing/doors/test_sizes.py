"""What is large: taken whole, or refused with what is too large; never cut off in silence."""

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver, Refusal
from agentd.testing.same import same

_LARGE = bytes(range(256)) * 12_289  # 3 MiB and a bit, larger than a body may be
_PIECE = bytes(range(251))


@pytest.fixture
def key(daemon: Daemon, alice: Place) -> str:
    return daemon.key(alice.principal)


@pytest.mark.claims("run", "most_stdin")
def test_as_much_stdin_as_it_takes_arrives(
    door: Driver, daemon: Daemon, alice: Place, key: str
) -> None:
    sent = (_PIECE * (door.most_stdin // 251 + 1))[: door.most_stdin]
    door.run(key, alice.sandbox, ["sh", "-c", "cat > most"], stdin=sent)
    same(daemon.file(alice.sandbox, alice.path("most")), sent)


@pytest.mark.claims("run", "most_stdin")
def test_more_than_that_is_refused_and_nothing_runs(
    door: Driver, daemon: Daemon, alice: Place, key: str
) -> None:
    with pytest.raises(Refusal) as caught:
        door.run(key, alice.sandbox, ["touch", "too-much"], stdin=b"x" * 2 * door.most_stdin)
    assert caught.value.code == "too_large"
    assert daemon.file(alice.sandbox, alice.path("too-much")) is None
    # Whoever comes next is served.
    door.run(key, alice.sandbox, ["touch", "afterwards"])
    assert daemon.file(alice.sandbox, alice.path("afterwards")) == b""


@pytest.mark.claims("write_file")
def test_a_large_file_arrives_whole(door: Driver, daemon: Daemon, alice: Place, key: str) -> None:
    """Or it is refused, and what was there is as it was."""
    path, before = alice.path("large"), b"before"
    daemon.put(alice.sandbox, "large", before)
    try:
        door.write_file(key, alice.sandbox, path, _LARGE)
    except Refusal as refusal:
        assert refusal.code == "too_large"
        assert daemon.file(alice.sandbox, path) == before
    else:
        same(daemon.file(alice.sandbox, path), _LARGE)


@pytest.mark.claims("read_file")
def test_a_large_file_is_read_whole(door: Driver, daemon: Daemon, alice: Place, key: str) -> None:
    """Or it is refused."""
    daemon.put(alice.sandbox, "larger", _LARGE)
    try:
        found = door.read_file(key, alice.sandbox, alice.path("larger"))
    except Refusal as refusal:
        assert refusal.code == "too_large"
    else:
        same(found, _LARGE)


@pytest.mark.claims("read_file", "write_file")
def test_a_file_is_read_as_it_was_written(door: Driver, alice: Place, key: str) -> None:
    path = alice.path("a file, and its \N{SNOWMAN}")
    for data in (b"", bytes(range(256)), b"no newline"):
        door.write_file(key, alice.sandbox, path, data)
        assert door.read_file(key, alice.sandbox, path) == data


@pytest.mark.claims("list_files")
def test_a_folder_is_listed_whole(door: Driver, daemon: Daemon, alice: Place, key: str) -> None:
    names = {f"listed-{number}" for number in range(3)}
    for name in names:
        daemon.put(alice.sandbox, name, b"")
    assert names <= set(door.list_files(key, alice.sandbox, alice.workspace))
