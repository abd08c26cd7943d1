"""A real git server over https on loopback, and repositories to clone from it, evil ones too."""

import datetime
import http.server
import ipaddress
import os
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BACKEND = "/usr/lib/git-core/git-http-backend"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.invalid",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.invalid",
    "LC_ALL": "C",
}


def git(where: Path, *arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=where,
        env=ENVIRONMENT,
        input=stdin,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


class Repository:
    """A bare one, made of plumbing: whatever trees it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        git(path, "init", "-q", "--bare", "--template=", "--initial-branch=main", ".")
        git(path, "config", "uploadpack.allowAnySHA1InWant", "true")

    def blob(self, data: bytes) -> str:
        return git(self.path, "hash-object", "-w", "--stdin", stdin=data)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """Of (mode, name, id), in any order and with any names."""
        raw = b"".join(
            f"{mode} {name}".encode() + b"\0" + bytes.fromhex(sha) for mode, name, sha in entries
        )
        return git(
            self.path, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw
        )

    def commit(self, tree: str, *parents: str, branch: str = "main") -> str:
        before = [part for parent in parents for part in ("-p", parent)]
        made = git(self.path, "commit-tree", tree, *before, "-m", "a commit")
        git(self.path, "update-ref", f"refs/heads/{branch}", made)
        return made

    def files(self, files: dict[str, bytes], *parents: str, branch: str = "main") -> str:
        entries = [("100644", name, self.blob(data)) for name, data in sorted(files.items())]
        return self.commit(self.tree(*entries), *parents, branch=branch)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "GitServer"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        self.server.seen.append(self.path)
        for prefix, (status, target) in self.server.special.items():
            if path.startswith(prefix):
                self.send_response(status)
                if target:
                    self.send_header("Location", target + self.path[len(prefix) :])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        done = subprocess.run(
            [BACKEND],
            input=body,
            env={
                **ENVIRONMENT,
                "GIT_PROJECT_ROOT": str(self.server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            },
            capture_output=True,
            check=False,  # it fails with what it answers, too
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class GitServer(http.server.HTTPServer):
    """``special``: path prefix -> (status, Location). ``seen``: the paths that were asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root / "repositories"
        self.special: dict[str, tuple[int, str]] = {}
        self.seen: list[str] = []
        self.ca_pem, key = _certificate()
        (root / "server.pem").write_text(self.ca_pem + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(root / "server.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def handle_error(self, *_: Any) -> None:
        """A client that does not trust it goes away."""

    def repository(self, name: str) -> Repository:
        return Repository(self.root / name)

    def url(self, name: str) -> str:
        return f"https://127.0.0.1:{self.server_port}/{name}"

    def __enter__(self) -> "GitServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


def _certificate() -> tuple[str, str]:
    """A self-signed one for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's CA")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def exists() -> bool:
    return os.access(BACKEND, os.X_OK)
