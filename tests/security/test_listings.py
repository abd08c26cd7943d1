"""Threat: what a sandbox calls its files, and where its links point, fills the daemon's memory.

Controls: a listing, a change and a search are bounded in bytes, at the agent and at the host's end.
"""

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, fixture

from agentd.client.sandbox import Sandbox
from agentd.model.errors import AgentdError, InvalidInput

daemon = fixture()
# Each takes 4096 bytes inside, and six times as many as JSON.
LINKS = """
import os
os.mkdir("links")
for n in range(20_000):
    os.symlink(chr(1 + n % 9) * 4000 + "%05d" % n, "links/%d" % n)
"""
NAMES = """
import os
os.mkdir("names")
for n in range(30_000):
    os.close(os.open("names/" + "%05d" % n * 51, os.O_CREAT))
"""
MIB = 1 << 20


@pytest.fixture
def box(daemon: Daemon) -> Iterator[str]:
    id_ = daemon.sandbox(ttl="5m")
    yield id_
    daemon.ask("DELETE", f"/v1/sandboxes/{id_}")


def inside(daemon: Daemon, box: str, script: str) -> None:
    body = {"cmd": ["python3", "-c", script]}
    ran = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json
    assert ran["exit_code"] == 0, ran


@contextlib.contextmanager
def grows_by_at_most(daemon: Daemon, size: int) -> Iterator[None]:
    """The most memory that the daemon has meanwhile, proc(5)."""
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    (proc / "clear_refs").write_text("5")
    before = _peak(proc)
    yield
    assert _peak(proc) - before < size


def _peak(proc: Path) -> int:
    lines = (proc / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10


def test_a_listing_of_long_links_is_refused_and_says_why(daemon: Daemon, box: str) -> None:
    inside(daemon, box, LINKS)
    with grows_by_at_most(daemon, 150 * MIB):
        answer = daemon.ask("GET", f"/v1/sandboxes/{box}/files/list?path=/workspace/links")
    assert answer.status == 413 and "its listing is over" in answer.json["message"]
    assert "find" in answer.json["remediation"]
    with Sandbox.connect(box, url=daemon.url) as found:
        with pytest.raises(AgentdError, match="its listing is over"):
            found.files.list("/workspace/links")
        assert len(found.files.stat("/workspace/links/7").target or "") == 4005


def test_one_by_a_capability_too(daemon: Daemon, box: str) -> None:
    inside(daemon, box, LINKS)
    with grows_by_at_most(daemon, 150 * MIB):
        answer = daemon.call("fs.list.v1", {"path": "links", "limit": 10}, sandbox=box)
        assert answer.status == 413 and answer.json["code"] == "too_large"
        inside(daemon, box, "import os\nfor n in range(1000, 20_000): os.unlink(f'links/{n}')")
        answer = daemon.call("fs.list.v1", {"path": "links", "limit": 10_000}, sandbox=box)
    assert answer.status == 200 and len(answer.body) < 8 * MIB
    assert answer.json["value"]["truncated"] is True
    assert 50 < len(answer.json["value"]["entries"]) < 1000


def test_many_long_names_are_listed(daemon: Daemon, box: str) -> None:
    inside(daemon, box, NAMES)
    with grows_by_at_most(daemon, 250 * MIB):
        answer = daemon.ask("GET", f"/v1/sandboxes/{box}/files/list?path=/workspace/names")
    assert answer.status == 200 and len(answer.json) == 30_000


def test_what_is_no_utf_8_in_a_name_is_no_other_name(daemon: Daemon, box: str) -> None:
    """It was a question mark, as another file may have it in its name."""
    inside(daemon, box, "for name in (b'\\xff\\xfe', b'??'): open(name, 'w').close()")
    found = daemon.ask("GET", f"/v1/sandboxes/{box}/files/list?path=/workspace").json
    assert {entry["name"] for entry in found} == {"\ufffd\ufffd", "??"}


def test_a_search_is_bounded_too(daemon: Daemon, box: str) -> None:
    inside(
        daemon, box, "for n in range(2000): open('\\x01' * 240 + str(n), 'w').write('\\x01' * 999)"
    )
    with grows_by_at_most(daemon, 200 * MIB):
        asked = {"pattern": "\x01", "max_matches": 10_000}
        answer = daemon.call("fs.search.v1", asked, sandbox=box)
    assert answer.status == 200 and len(answer.body) < 40 * MIB


def test_changes_that_nobody_reads_are_bounded(daemon: Daemon, box: str) -> None:
    """The client is cut off long before they take much."""
    deep = "/".join(["d" * 250] * 15)
    inside(daemon, box, f"import os; os.makedirs('{deep}')")
    path = f"/v1/sandboxes/{box}/files/watch?path=/workspace/{deep}"
    flood = "for n in range(60_000): os.mkdir('x'); os.rmdir('x')"
    with contextlib.closing(daemon.connect()) as link:
        link.request("GET", path)
        answer = link.getresponse()
        assert answer.read(3) == b":\n\n"
        with grows_by_at_most(daemon, 20 * MIB):
            inside(daemon, box, f"import os; os.chdir('{deep}')\n{flood}")
        size = 0
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            while piece := answer.read1(MIB):
                size += len(piece)
    assert size < 12 * MIB


def test_changes_of_a_workspace_are_bounded_too(daemon: Daemon, tmp_path: Path) -> None:
    box = daemon.sandbox(workspace=f"{tmp_path}:cow", ttl="5m")
    deep = "/".join(["d" * 250] * 15)
    made = "for n in range({}): os.close(os.open('%05d' % n * 50, os.O_CREAT))"
    inside(daemon, box, f"import os; os.makedirs('{deep}'); os.chdir('{deep}')\n{made.format(100)}")
    where = f"/v1/sandboxes/{box}/changes"
    assert len(daemon.ask("GET", where).json) == 15 + 100
    inside(daemon, box, f"import os; os.chdir('{deep}')\n{made.format(8500)}")
    with grows_by_at_most(daemon, 50 * MIB):
        answer = daemon.ask("GET", where)
    assert answer.status == 409 and f"over {32 * MIB} bytes" in answer.json["message"]
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


# --- what the caller did wrong is not the sandbox's fault ---

SLIPS = {
    "a relative path": ("GET", "files?path=x", None),
    "listing one": ("GET", "files/list?path=x", None),
    "looking at one": ("GET", "files/stat?path=x", None),
    "removing one": ("DELETE", "files?path=x", None),
    "writing one": ("PUT", "files?path=x", b"x"),
    "a tar of one": ("GET", "files/tar?path=x", None),
    "a tar into one": ("PUT", "files/tar?path=x", b"x"),
    "watching one": ("GET", "files/watch?path=x", None),
    "a NUL": ("GET", "files?path=/x%00y", None),
    "a NUL in mkdir": ("POST", "files/mkdir", {"path": "/workspace/x\0y"}),
    "a NUL in move": ("POST", "files/move", {"path": "/workspace/x", "to": "/workspace/\0"}),
    "too long a path": ("GET", "files?path=/" + "x/" * 2100, None),
    "no tar": ("PUT", "files/tar?path=/workspace", b"x" * 2000),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_a_400(daemon: Daemon, box: str, slip: str) -> None:
    method, path, body = SLIPS[slip]
    answer = daemon.ask(method, f"/v1/sandboxes/{box}/{path}", body)
    assert answer.status == 400, answer.body
    assert answer.json["message"] and "internal" not in answer.json["message"]


def test_so_it_is_for_the_sdk() -> None:
    with Sandbox.create() as box, pytest.raises(InvalidInput, match="is not absolute"):
        box.files.read("x")


def test_a_tag_that_is_kept_with_a_command_is_bounded(daemon: Daemon, box: str) -> None:
    """It would stay in memory, in the store and in each list, for each of many commands."""
    url = f"/v1/sandboxes/{box}/exec"
    for tag in ("a" * 257, "a" * MIB, "a\nb", "\x1b[2J"):
        for body in ({}, {"wait": False}):
            refused = daemon.ask("POST", url, {"cmd": ["true"], "tag": tag, **body})
            assert (refused.status, refused.code) == (400, "invalid_input"), refused.body[:300]
            assert "256 characters" in refused.json["remediation"]
    once = daemon.ask("POST", "/v1/run", {"exec": {"cmd": ["true"], "tag": "a" * 257}})
    assert (once.status, once.code) == (400, "invalid_input"), once.body[:300]
    assert daemon.ask("GET", f"/v1/sandboxes/{box}/processes").json == []
    assert daemon.ask("POST", url, {"cmd": ["true"], "tag": "ä" * 256}).status == 200
