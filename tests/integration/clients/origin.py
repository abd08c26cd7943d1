"""What programs ask for over HTTP, from one server: an echo, packages of pip, npm and apt, a
repository of git, events, and a WebSocket."""

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

from tests.index import wheel
from tests.integration.read_server import Echo

_WHEEL = wheel("sample")
_WHEEL_NAME = "sample-1.0-py3-none-any.whl"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of RFC 6455
WAIT = 120.0


def npm_package() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        data = json.dumps({"name": "sample", "version": "1.0.0"}).encode()
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


_NPM = npm_package()


class Origin(Echo):
    """Everything lies below /v1. ``folder`` has ``git`` and ``debian``, of ``prepare``; /v1/on lets
    the events of /v1/events go on after the first."""

    folder: ClassVar[Path]
    on: ClassVar[threading.Event] = threading.Event()

    def reply(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        kind, _, rest = path.removeprefix("/v1/").partition("/")
        if kind == "simple":
            digest = hashlib.sha256(_WHEEL).hexdigest()
            page = f'<!DOCTYPE html><a href="/v1/files/{_WHEEL_NAME}#sha256={digest}">w</a>'
            self.say(page.encode().replace(b">w<", b">" + _WHEEL_NAME.encode() + b"<"), "text/html")
        elif kind == "files":
            self.say(_WHEEL, "application/octet-stream")
        elif kind == "npm":
            self._npm(rest)
        elif kind == "git":
            self._git(rest, query, body)
        elif kind == "debian":
            file = self.folder / "debian" / rest
            found = file.read_bytes() if file.is_file() else b""
            self.say(found, "application/octet-stream", 200 if found else 404)
        elif kind == "events":
            self._events()
        elif kind == "on":
            self.on.set()
            self.say(b"{}")
        elif kind == "socket":
            self._socket()
        else:
            super().reply(body)

    def _npm(self, rest: str) -> None:
        if rest.endswith(".tgz"):
            self.say(_NPM, "application/octet-stream")
            return
        where = f"https://{self.headers['host']}/v1/npm/sample/-/sample-1.0.0.tgz"
        integrity = base64.b64encode(hashlib.sha512(_NPM).digest()).decode()
        dist = {"tarball": where, "integrity": f"sha512-{integrity}"}
        version = {"name": "sample", "version": "1.0.0", "dist": dist}
        tags = {"latest": "1.0.0"}
        told = {"name": "sample", "dist-tags": tags, "versions": {"1.0.0": version}}
        self.say(json.dumps(told).encode())

    def _git(self, rest: str, query: str, body: bytes) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": f"{self.folder}/git",
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "PATH_INFO": f"/{rest}",
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "REMOTE_USER": "somebody",
        }
        said = subprocess.run(
            ["git", "http-backend"], input=body, env=env, capture_output=True, check=True
        ).stdout
        head, _, data = said.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.get("Status", "200").split()[0])
        self.say(data, fields["Content-Type"], status)

    def _events(self) -> None:
        """The second comes when whoever has read the first says so."""
        self.on.clear()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event(b"data: first\n\n")
        if self.on.wait(WAIT):
            self._event(b"data: second\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.flush()

    def _socket(self) -> None:
        """A WebSocket that says back one short text, and closes."""
        key = self.headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        self.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept.decode()),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        length = self.rfile.read(2)[1] & 0x7F
        mask, masked = self.rfile.read(4), self.rfile.read(length)
        text = bytes(each ^ mask[n % 4] for n, each in enumerate(masked))
        self.server.seen.append(("frame", [], text))
        self.wfile.write(bytes([0x81, length]) + text + b"\x88\x02\x03\xe8")
        self.wfile.flush()
        self.connection.settimeout(WAIT)
        self.rfile.read(2 + 4 + 2)  # the other's close: else what is unread resets, and takes ours
        self.close_connection = True


def prepare(folder: Path) -> None:
    """Make a repository of one commit, and of Debian's packages one that has one."""
    bare, work = folder / "git/sample.git", folder / "work"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for argv in (
        ["git", "init", "-q", "--bare", "-b", "main", str(bare)],
        ["git", "-C", str(bare), "config", "http.receivepack", "true"],
        ["git", "init", "-q", "-b", "main", str(work)],
        [*git, "-C", str(work), "commit", "-q", "--allow-empty", "-m", "first"],
        ["git", "-C", str(work), "push", "-q", str(bare), "main"],
    ):
        subprocess.run(argv, check=True)
    debian, package = folder / "debian", folder / "package"
    (package / "DEBIAN").mkdir(parents=True)
    control = "Package: agentd-sample\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\n"
    (package / "DEBIAN/control").write_text(control + "Description: sample\n")
    debian.mkdir()
    file = debian / "agentd-sample.deb"
    build = ["dpkg-deb", "--root-owner-group", "-b", str(package), str(file)]
    if subprocess.run(["which", "dpkg-deb"], capture_output=True, check=False).returncode == 0:
        subprocess.run(build, check=True, capture_output=True)
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        where = f"Filename: ./agentd-sample.deb\nSize: {len(data)}\nSHA256: {digest}\n"
        (debian / "Packages").write_text(control + where + "Description: sample\n")
