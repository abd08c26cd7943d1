"""The daemon that the suite starts: its doors each on a port, its policy, and hands of our own."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agentd.testing.doors.http import Answer, ask

ORDINARY = ("run", "create", "files", "read", "ports", "snapshot")
#: The label of the sandboxes that the suite makes by itself: the policy allows these to everybody.
PLACE = {"door-suite": "place"}
#: That many requests ``hasty`` may make, and then none for hours.
BURST = 4
_CONFIG = """
[[listen]]
address = "unix:{folder}/rest.sock"
[[auth.peers]]
uid = "self"
scopes = ["admin"]
[daemon]
drain = "1s"
[policy]
bundle = "{folder}/policy"
[http]
body = "1M"
"""
# Each door has an address of its own: the whole of 127.0.0.0/8 is this machine's.
_DOOR = """
[[listen]]
address = "127.0.0.{number}:0"
serves = ["{door}"]
[quotas.principals."hasty-{number}"]
requests = 0.0001
burst = {burst}
"""
_POLICY = """package agentd

import rego.v1

default decision := {"allow": true, "reasons": ["suite.all: it is allowed"]}

decision := {"allow": false, "reasons": ["suite.denied: nothing is allowed to it"]} if {
	input.principal.name == "denied"
	not prepared
} else := {"allow": "perhaps"} if {
	input.principal.name == "undecided"
	not prepared
}

prepared if {
	input.capability.name == "sandbox.create.v1"
	input.sandbox.labels["door-suite"] == "place"
}
"""
_MANIFEST = {"name": "door-suite", "modules": ["base.rego"], "data": []}
_READY = re.compile(r" ready on (?P<names>.*) \(pid \d+\)$")
_END_SECONDS = 60.0


class Daemon:
    """``agentd serve`` in a process of its own. ``doors`` are names of [[listen]] serves."""

    def __init__(self, folder: Path, doors: Sequence[str], patience: float) -> None:
        self.patience = patience
        self._folder = folder
        self._keys: dict[tuple[str, ...], str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._admin = f"unix:{folder}/rest.sock"
        text = _CONFIG.format(folder=folder)
        for number, door in enumerate(doors, 1):
            text += _DOOR.format(number=number, door=door, burst=BURST)
        (folder / "agentd.toml").write_text(text)
        policy = folder / "policy"
        policy.mkdir(mode=0o755)
        (policy / "base.rego").write_text(_POLICY)
        (policy / "manifest.json").write_text(json.dumps(_MANIFEST))
        self.addresses: list[str] = []

    def start(self) -> None:
        argv = [sys.executable, "-m", "agentd", "serve", "--config", "agentd.toml"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, "--state", str(self._folder / "state")],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
            )
        assert self._process.stdout is not None
        said = _READY.search(self._process.stdout.readline())
        assert said, f"the daemon did not start:\n{self.log}"
        names = said["names"].split(", ")
        self.addresses = [name.removeprefix("http://") for name in names[1:]]

    def stop(self) -> None:
        """End its sandboxes, and it."""
        if self._process is None:
            return
        with contextlib.suppress(OSError, AssertionError):
            for one in self.json("GET", "/v1/sandboxes?limit=500")["sandboxes"]:
                self.ask("DELETE", f"/v1/sandboxes/{one['id']}")
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    # --- as an admin, by REST, past the door ---

    def ask(self, method: str, path: str, body: object = None, *, key: str | None = None) -> Answer:
        """``body`` goes as it is where it is bytes, else as JSON."""
        headers = {} if key is None else {"x-api-key": key}
        data = body
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        assert data is None or isinstance(data, bytes)
        return ask(self._admin, method, path, data, headers)

    def json(self, method: str, path: str, body: object = None, *, key: str | None = None) -> Any:
        answer = self.ask(method, path, body, key=key)
        assert answer.status < 400, (method, path, answer.body)
        return json.loads(answer.body) if answer.body else None

    def key(self, principal: str, *scopes: str) -> str:
        """An API key of that principal; without ``scopes`` with the ordinary ones."""
        asked = principal, *sorted(scopes or ORDINARY)
        if asked not in self._keys:
            self._keys[asked] = self.new_key(*asked)["secret"]
        return self._keys[asked]

    def new_key(self, principal: str, *scopes: str) -> Mapping[str, str]:
        made: Mapping[str, str] = self.json(
            "POST", "/v1/keys", {"name": principal, "scopes": scopes or ORDINARY}
        )
        return made

    def revoke(self, id_: str) -> None:
        self.json("DELETE", f"/v1/keys/{id_}")

    def put(self, sandbox: str, name: str, data: bytes, mode: int = 0o644) -> None:
        view = self.ask("GET", f"/v1/sandboxes/{sandbox}")
        if view.status == 404:
            return
        path = quote(f"{json.loads(view.body)['workspace']}/{name}")
        self.json("PUT", f"/v1/sandboxes/{sandbox}/files?path={path}&mode={mode:o}", data)

    def file(self, sandbox: str, path: str) -> bytes | None:
        """What is in it; None where there is none."""
        answer = self.ask("GET", f"/v1/sandboxes/{sandbox}/files?path={quote(path)}")
        assert answer.status in (200, 404), answer.body
        return answer.body if answer.status == 200 else None

    def head(self) -> int:
        """The number of the audit log's last record."""
        found: int = self.json("GET", "/v1/audit/head")["seq"]
        return found

    def records(self, after: int, principal: str) -> list[Mapping[str, Any]]:
        """Those of that principal behind number ``after``."""
        found: list[Mapping[str, Any]] = []
        following: int | None = after + 1
        while following is not None:
            page = self.json("GET", f"/v1/audit/records?from={following}")
            found += [one for one in page["records"] if one.get("principal") == principal]
            following = page["next"]
        return found

    def settle(self, sandbox: str) -> None:
        """See that all which was recorded so far can be read: records are written in order, and
        the start of what we ask for here before it is answered."""
        self.put(sandbox, "settled", b"")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for what must come, and fail where it does not. It asks less and less often."""
        deadline, pause = time.monotonic() + self.patience, 0.02
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {self.patience:g} s"
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5)


class Place:
    """A sandbox of one principal, with a file and commands in it."""

    CONTENT = b"what was there\n"
    WROTE = b"0123456789"

    def __init__(self, daemon: Daemon, principal: str) -> None:
        self.principal = principal
        self.daemon = daemon
        self._spare = self._wrote = self._reads = ""
        view = self._made()
        self.sandbox: str = view["id"]
        self.workspace: str = view["workspace"]
        self.file = f"{self.workspace}/there"
        daemon.put(self.sandbox, "there", self.CONTENT)

    def path(self, name: str) -> str:
        return f"{self.workspace}/{name}"

    def start(self, *argv: str, **more: object) -> str:
        """The id of a command that runs."""
        body = {"cmd": argv, "wait": False, **more}
        where = f"/v1/sandboxes/{self.sandbox}/exec"
        started: str = self.daemon.json("POST", where, body)["id"]
        return started

    def process(self, id_: str) -> Any:
        """As REST tells it; None where it is forgotten."""
        found = self.daemon.ask("GET", f"/v1/sandboxes/{self.sandbox}/processes/{id_}")
        return json.loads(found.body) if found.status == 200 else None

    def wrote(self) -> str:
        """The id of a command that has written WROTE and ended."""
        if self._wrote and self.process(self._wrote) is None:  # old ones are forgotten
            self._wrote = ""
        if not self._wrote:
            id_ = self._wrote = self.start("printf", self.WROTE.decode())
            self.daemon.until(lambda: self.process(id_)["state"] == "ended", "the end of printf")
        return self._wrote

    def reads(self) -> str:
        """The id of a command that reads, and goes on."""
        self._reads = self._reads or self.start("cat", stdin_open=True)
        return self._reads

    def spare(self) -> str:
        """Another sandbox of the same principal, to be killed."""
        found = self.daemon.ask("GET", f"/v1/sandboxes/{self._spare or 'none'}")
        if found.status != 200:
            self._spare = self._made()["id"]
        return self._spare

    def _made(self) -> Any:
        key = self.daemon.key(self.principal)
        return self.daemon.json("POST", "/v1/sandboxes", {"labels": PLACE, "ttl": "1h"}, key=key)
