"""``/readyz``: a full disk, a socket that is gone; and a start on a full disk."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Answer, Daemon, running, until

_FULL = b"x" * (1 << 20)


@contextmanager
def _small_disk() -> Iterator[Path]:
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory(prefix="agentd-") as name:
        if libc.mount(b"none", os.fsencode(name), b"tmpfs", 0, b"size=64m,mode=700"):
            pytest.skip(f"no tmpfs can be mounted: {os.strerror(ctypes.get_errno())}")
        try:
            yield Path(name)
        finally:
            assert libc.umount2(os.fsencode(name), 2) == 0


def _fill(folder: Path) -> Path:
    path = folder / "filler"
    with open(path, "ab", buffering=0) as file:
        size = len(_FULL)
        while size:
            try:
                file.write(_FULL[:size])
            except OSError:
                size //= 2
    return path


def _ready(daemon: Daemon) -> Answer:
    return daemon.ask("GET", "/readyz")


@pytest.mark.root
def test_a_full_disk_is_told_and_a_daemon_starts_on_it() -> None:
    with _small_disk() as folder:
        daemon = Daemon(folder)
        try:
            daemon.start()
            until((daemon.state / "reserve").exists)
            assert _ready(daemon).status == 200
            box = daemon.sandbox()
            filler = _fill(folder)
            until(lambda: _ready(daemon).status == 503)
            answer = _ready(daemon)
            assert answer.code == "unavailable" and "is full" in answer.json["message"]
            assert daemon.ask("POST", "/v1/sandboxes", {}).status == 503
            daemon.stop(kill=True)
            with open(filler, "ab", buffering=0) as file, pytest.raises(OSError, match="space"):
                while True:
                    file.write(b"x")
            daemon.start()
            assert daemon.is_up, daemon.log[-2000:]
            assert daemon.ask("GET", f"/v1/sandboxes/{box}").status == 200
            with open(filler, "ab", buffering=0) as file, pytest.raises(OSError, match="space"):
                while True:
                    file.write(_FULL[: 1 << 12])
            until(lambda: _ready(daemon).status == 503)
            assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
            filler.unlink()
            until(lambda: _ready(daemon).status == 200)
            made = daemon.ask("POST", "/v1/sandboxes", {})
            assert made.status == 201, made.body
            assert daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}").status == 204
        finally:
            (folder / "filler").unlink(missing_ok=True)
            daemon.end()


@pytest.mark.root
def test_snapshots_of_one_leave_room_for_what_all_others_do() -> None:
    with _small_disk() as folder:
        daemon = Daemon(folder)
        try:
            daemon.start()
            until((daemon.state / "reserve").exists)
            key = daemon.key("alice")
            path = f"/v1/sandboxes/{daemon.sandbox(key)}"
            for size in ("16M", "1M", "64K"):  # until not even these go on it
                made = {"cmd": f"head -c {size} /dev/zero | tr '\\0' x > file"}
                ran = daemon.ask("POST", f"{path}/exec", made, key=key)
                assert (ran.status, ran.json["status"]) == (200, "ok"), ran.body
                while (taken := daemon.ask("POST", f"{path}/snapshot", key=key)).status == 201:
                    pass
                assert taken.status in (429, 502), taken.body
            assert (taken.status, taken.code) == (429, "full"), taken.body
            assert "snapshots leave 4 MiB of their disk" in taken.json["message"]
            assert _ready(daemon).status == 200
            known = {view["id"] for view in daemon.ask("GET", "/v1/snapshots", key=key).json}
            assert {each.name for each in (daemon.state / "snapshots").iterdir()} == known
            daemon.sandbox()
            assert daemon.ask("DELETE", f"/v1/snapshots/{known.pop()}", key=key).status == 204
        finally:
            daemon.end()


@pytest.mark.root
def test_volumes_are_made_with_as_much_room_left_as_snapshots() -> None:
    with _small_disk() as folder:
        daemon = Daemon(folder)
        try:
            daemon.start()
            until((daemon.state / "reserve").exists)
            volumes = "/v1/volumes"
            assert daemon.ask("POST", volumes, {"name": "data"}).status == 201
            refused = daemon.ask("POST", volumes, {"name": "large", "size": "52M"})
            assert refused.code in ("full", "refused"), refused.body  # here no size can be held
            box = daemon.sandbox(volumes=["data:/data"])
            left = shutil.disk_usage(folder).free - (3 << 20)
            fill = {"cmd": f"head -c {left} /dev/zero > /data/x"}
            assert daemon.ask("POST", f"/v1/sandboxes/{box}/exec", fill).json["exit_code"] == 0
            daemon.ask("DELETE", f"/v1/sandboxes/{box}")
            refused = daemon.ask("POST", f"{volumes}/data/snapshot", {"name": "copy"})
            assert (refused.status, refused.code) == (429, "full"), refused.body
            assert "volumes leave 4 MiB of their disk" in refused.json["message"]
            assert _ready(daemon).status == 200
            assert [each["name"] for each in daemon.ask("GET", volumes).json] == ["data"]
        finally:
            daemon.end()


@contextmanager
def _with_a_small_store(config: str) -> Iterator[Daemon]:
    """A daemon whose state has 64 MiB, but for its log, which has as many of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    with _small_disk() as folder, _small_disk() as audit:
        daemon = Daemon(folder, config)
        place = daemon.state / "audit"
        place.mkdir(0o700, parents=True)
        daemon.state.chmod(0o700)
        bind = 4096
        assert not libc.mount(os.fsencode(audit), os.fsencode(place), b"none", bind, None)
        try:
            daemon.start()
            until((daemon.state / "reserve").exists)
            yield daemon
        finally:
            (folder / "filler").unlink(missing_ok=True)
            daemon.end()
            assert libc.umount2(os.fsencode(place), 2) == 0


@pytest.mark.root
def test_forks_of_which_some_cannot_be_written_down_are_none() -> None:
    most = 8
    with _with_a_small_store(f"\n[quotas.default]\nsandboxes = {most}\n") as daemon:
        path, filler = f"/v1/sandboxes/{daemon.sandbox()}", _fill(daemon.folder)
        for pages in (8, 16, 24):  # of the disk: enough for some of them
            os.truncate(filler, filler.stat().st_size - pages * 4096)
            refused = daemon.ask("POST", f"{path}/fork", {"count": most - 1})
            assert (refused.status, refused.code) == (503, "store_error"), refused.body
            assert len(daemon.ask("GET", "/v1/sandboxes").json["sandboxes"]) == 1
            _fill(daemon.folder)
        filler.unlink()
        until(lambda: _ready(daemon).status == 200)
        made = [daemon.ask("POST", "/v1/sandboxes", {}).status for _ in range(most)]
        assert made == [201] * (most - 1) + [429]


@pytest.mark.root
def test_what_the_store_refuses_has_not_changed() -> None:
    with _with_a_small_store('\n[egress]\nallow = ["*.example.org"]\n') as daemon:
        path = f"/v1/sandboxes/{daemon.sandbox(net=['a.example.org'])}"
        _fill(daemon.folder)

        def refused(method: str, where: str, make: Callable[[int], Any]) -> Any:
            """What was asked for last, and done, before the store had no room any more."""
            done, number = None, 0
            while (answer := daemon.ask(method, where, make(number))).status == 200:
                done, number = make(number), number + 1
            assert (answer.status, answer.code) == (503, "store_error"), answer.body
            return done

        def told() -> tuple[object, object]:
            view = daemon.ask("GET", path).json
            return view["labels"], daemon.ask("GET", f"{path}/network").json["egress"]

        refused("PATCH", path, lambda n: {"labels": {f"l{n}": "x" * 200}})
        labels, _ = told()
        net = refused("PUT", f"{path}/network", lambda n: {"net": [f"n{n}.example.org"]})
        rules = ["a.example.org"] if net is None else net["net"]
        assert told() == (labels, rules)
        deadline = daemon.ask("GET", path).json["deadline"]
        refused("POST", f"{path}/renew", lambda _: {"ttl": "9h"})
        assert abs(daemon.ask("GET", path).json["deadline"] - deadline) < 1
        daemon.stop(kill=True)
        daemon.start()  # the reserve has room for it
        assert told() == (labels, rules)


def test_a_store_that_was_taken_away_acknowledges_nothing() -> None:
    with running() as daemon:
        box = f"/v1/sandboxes/{daemon.sandbox()}"
        store = daemon.state / "store.db"
        away = store.rename(daemon.folder / "away")
        until(lambda: _ready(daemon).status == 503)
        assert str(store) in _ready(daemon).json["message"]
        for method, path, body in (
            ("POST", "/v1/keys", {"name": "k", "scopes": ["read"]}),
            ("POST", "/v1/sandboxes", {}),
            ("PATCH", box, {"labels": {"a": "b"}}),
        ):
            answer = daemon.ask(method, path, body)
            assert answer.code == "store_error" and "put it back" in answer.json["cause"]
            assert answer.json["remediation"] == ""  # nothing of the disk's room
        assert daemon.ask("GET", box).json["labels"] == {}
        away.rename(store)
        until(lambda: _ready(daemon).status == 200)
        assert daemon.ask("PATCH", box, {"labels": {"a": "b"}}).status == 200


def test_folders_that_were_removed_are_made_anew() -> None:
    with running() as daemon:
        box = f"/v1/sandboxes/{daemon.sandbox()}"
        for name in ("receipts", "snapshots", "volumes", "policy"):
            shutil.rmtree(daemon.state / name, ignore_errors=True)
        done = daemon.ask("POST", f"{box}/exec", {"cmd": "true"}).json["receipt"]
        until(lambda: daemon.ask("GET", f"/v1/receipts/{done}").status == 200)
        assert daemon.ask("GET", "/v1/snapshots").json == []
        assert daemon.ask("POST", f"{box}/snapshot").status == 201
        assert daemon.ask("POST", "/v1/volumes", {"name": "v"}).status == 201
        assert daemon.ask("POST", "/v1/sandboxes", {}).status == 201


def test_a_socket_that_was_removed_is_bound_anew() -> None:
    with running() as daemon:
        connection = daemon.connect()
        connection.request("GET", "/readyz")
        assert connection.getresponse().read() == b"ok\n"
        for _ in range(2):
            before = os.stat(daemon.socket)
            os.unlink(daemon.socket)
            until(lambda: os.path.exists(daemon.socket))
            after = os.stat(daemon.socket)
            assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
            until(lambda: _connects(daemon))
            assert _ready(daemon).status == 200
        connection.request("GET", "/readyz")  # what was connected still is
        assert connection.getresponse().read() == b"ok\n"
        connection.close()


def test_a_socket_whose_place_another_file_took_is_told() -> None:
    with running() as daemon:
        connection = daemon.connect()
        connection.connect()
        os.unlink(daemon.socket)
        Path(daemon.socket).write_text("another's")

        def told() -> str:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            body = answer.read().decode()  # always: the connection is used again
            return body if answer.status == 503 else ""

        until(lambda: daemon.socket in told())
        assert Path(daemon.socket).read_text() == "another's"
        os.unlink(daemon.socket)
        until(lambda: _connects(daemon) and _ready(daemon).status == 200)
        connection.close()


def _connects(daemon: Daemon) -> bool:
    try:
        return _ready(daemon).status > 0
    except OSError:
        return False
