"""A daemon as a process, its callers with keys of their own, its log and its records."""

import atexit
import contextlib
import functools
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from agentd.audit import read
from agentd.audit.verify import verify
from agentd.daemon.admission.control import COMPILED
from agentd.daemon.config.values import SHIPPED_BUNDLES
from agentd.model.audit import Record
from agentd.model.errors import AgentdError
from agentd.policy import source
from agentd.policy.build import Cache
from agentd.sandbox.supervisor import client as supervisor

T = TypeVar("T")
WAIT = 120.0
ORDINARY = ("run", "create", "files", "read", "ports", "snapshot")
_CONFIG = """
[[listen]]
address = "unix:{folder}/agentd.sock"
[[auth.peers]]
uid = {uid}
scopes = ["admin"]
[daemon]
drain = "2s"
[log]
level = "debug"
"""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, which has all four members; "" where it is none."""
        if self.status < 400:
            return ""
        assert set(self.json) == {"code", "message", "cause", "remediation"}, self.body
        code: str = self.json["code"]
        return code


class Daemon:
    """``config`` is TOML that comes behind what every one here has; ``prefix`` what starts it."""

    def __init__(self, folder: Path, config: str = "", prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self._prefix = tuple(prefix)
        self.socket = f"{folder}/agentd.sock"
        self.url = f"unix:{self.socket}"
        self.state = folder / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self._keys: dict[tuple[str, ...], str] = {}
        self.configure(config)

    def configure(self, config: str) -> None:
        text = _CONFIG.format(folder=self.folder, uid=os.getuid()) + config
        (self.folder / "agentd.toml").write_text(text)

    def start(self, *words: str) -> None:
        if not (self._prefix or self.state.exists()):  # another user's would not be its own
            self.state.mkdir(0o700)
            shutil.copytree(_policies(), self.state / COMPILED)
        argv = [sys.executable, "-m", "agentd", "serve", "--config", f"{self.folder}/agentd.toml"]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTD_", "OTEL_"))}
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, *argv, "--state", str(self.state), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
            )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            self.process.wait(WAIT)

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, *, kill: bool = False) -> int:
        assert self.process is not None and self.process.stdout is not None
        self.process.kill() if kill else self.process.terminate()
        code = self.process.wait(WAIT)
        self.process.stdout.close()
        return code

    def end(self) -> None:
        """It, and its sandboxes."""
        if self.process is not None:
            self.stop(kill=not self.is_up)
        self.end_supervisor()

    def end_supervisor(self) -> None:
        path = self.state / "supervisor.sock"
        if path.exists():
            with contextlib.suppress(AgentdError):
                link = supervisor.connect(str(path), lambda *_: None)
                link.ask("shutdown")
                link.lost.wait(WAIT)
                link.close()

    # --- its callers ---

    def connect(self) -> http.client.HTTPConnection:
        return _Unix(self.socket)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str = "",
        **headers: str,
    ) -> Answer:
        """``body`` as it is where it is bytes, else as JSON. Without ``key``, as the admin."""
        connection = self.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= {"X-API-Key": key} if key else {}
        raw = body
        if body is not None and not isinstance(body, bytes):
            raw = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(connection):
            try:
                connection.request(method, path, raw, sent)  # type: ignore[arg-type]
                response = connection.getresponse()
                return Answer(response.status, response.read(), dict(response.headers))
            except ConnectionError as error:
                ended = None if self.process is None else self.process.poll()
                tail = self.log[-4000:].decode(errors="replace")
                error.add_note(f"the daemon's exit status is {ended}; its log ends with\n{tail}")
                raise

    def key(self, name: str, *scopes: str) -> str:
        """An API key of the principal ``name``; without ``scopes`` with the ordinary ones."""
        asked = name, *(scopes or ORDINARY)
        if asked not in self._keys:
            made = self.ask("POST", "/v1/keys", {"name": name, "scopes": asked[1:]})
            assert made.status in (200, 201), made.body
            self._keys[asked] = made.json["secret"]
        return self._keys[asked]

    def call(self, capability: str, parameters: object = None, **options: Any) -> Answer:
        """Of REST: ``sandbox``, ``create`` and ``bundle`` go into the request, the rest beside."""
        body: dict[str, Any] = {"capability": capability, "parameters": parameters or {}}
        for name in ("sandbox", "create", "bundle"):
            if name in options:
                body[name] = options.pop(name)
        return self.ask("POST", "/v1/call", body, **options)

    def sandbox(self, key: str = "", **wanted: object) -> str:
        made = self.ask("POST", "/v1/sandboxes", wanted, key=key)
        assert made.status == 201, made.body
        id_: str = made.json["id"]
        return id_

    def cli(self, *words: str, key: str = "") -> "subprocess.CompletedProcess[bytes]":
        env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
        env |= {"AGENTD_URL": self.url, "AGENTD_DAEMON__STATE": str(self.state)}
        env |= {"AGENTD_API_KEY": key} if key else {}
        return subprocess.run(
            [sys.executable, "-m", "agentd", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=env,
            timeout=WAIT,
            check=False,
        )

    # --- what it writes down ---

    @property
    def audit(self) -> str:
        return str(self.state / "audit")

    @property
    def log(self) -> bytes:
        return (self.folder / "log").read_bytes()

    def records(self, **wanted: str) -> list[Record]:
        """Those with these members. What is refused may be on disk a moment later."""
        assert verify(self.audit).ok
        found = read.records(self.audit)
        return [r for r in found if all(getattr(r, k) == v for k, v in wanted.items())]

    def until_recorded(self, **wanted: str) -> Record:
        until(lambda: bool(self.records(**wanted)))
        return self.records(**wanted)[-1]

    def everything_written(self) -> bytes:
        """All files of its state, and its log: what whoever steals them would read."""
        parts = [self.log]
        for path in sorted(self.state.rglob("*")):
            if path.is_file():
                parts.append(path.read_bytes())
        return b"\n".join(parts)


@functools.cache
def _policies() -> str:
    """A folder of what those that come with agentd compile to: a sixth of a daemon's start."""
    folder = tempfile.mkdtemp(prefix="agentd-policies-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in SHIPPED_BUNDLES:
        Cache(folder).put(source.read(name))
    return folder


class Later(Generic[T]):
    """A request in a thread of its own, which waits for something."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._answers: list[T] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(ask()))
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return bool(self._answers)

    def answer(self) -> T:
        self._thread.join(WAIT)
        assert self._answers, "it was not answered"
        return self._answers[0]


def until(holds: Callable[[], bool], seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@contextlib.contextmanager
def running(
    config: str = "", *words: str, policy: str = "", prefix: Sequence[str] = ()
) -> Iterator[Daemon]:
    """One that is ready, until the end of the block. ``policy`` is the text of one of its own."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as name:
        folder = Path(name)
        if policy:
            config += f'\n[policy]\nbundle = "{bundle(folder, policy)}"\n'
        made = Daemon(folder, config, prefix)
        try:
            made.start(*words)
            assert made.is_up, made.log.decode()
            yield made
        finally:
            made.end()


def bundle(folder: Path, rules: str, name: str = "policy") -> str:
    """A policy's folder, with ``rules`` behind the head that each has."""
    where = folder / name
    where.mkdir(mode=0o755, exist_ok=True)
    (where / "base.rego").write_text(f"package agentd\n\nimport rego.v1\n\n{rules}\n")
    manifest = {"name": "test", "modules": ["base.rego"], "data": []}
    (where / "manifest.json").write_text(json.dumps(manifest))
    for file in where.iterdir():
        file.chmod(0o644)
    return str(where)


def fixture(config: str = "", *, policy: str = "") -> Any:
    """A pytest fixture: one daemon for all tests of a file."""

    @pytest.fixture(scope="module")
    def daemon() -> Iterator[Daemon]:
        with running(config, policy=policy) as made:
            yield made

    return daemon
