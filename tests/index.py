"""A package index of a test's own: wheels as they are asked for, and what was asked of it."""

import base64
import hashlib
import io
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "index.test"


def wheel(
    name: str,
    version: str = "1.0",
    files: Mapping[str, str] | None = None,
    needs: Sequence[str] = (),
    scripts: Mapping[str, str] | None = None,
    python: str = ">=3.9",
) -> bytes:
    """One that pip takes; the module ``name`` says ``VERSION`` unless ``files`` say otherwise."""
    info = f"{name}-{version}.dist-info"
    found = dict(files or {f"{name}.py": f"VERSION = {version!r}\n"})
    needed = "".join(f"Requires-Dist: {need}\n" for need in needs)
    found[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"Requires-Python: {python}\n{needed}"
    )
    found[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if scripts:
        lines = "".join(f"{script} = {where}\n" for script, where in scripts.items())
        found[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    rows = []
    for path, text in found.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{path},sha256={digest.decode()},{len(text.encode())}\n")
    found[f"{info}/RECORD"] = "".join(rows) + f"{info}/RECORD,,\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in found.items():
            archive.writestr(path, text)
    return packed.getvalue()


def tarball(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


class Index:
    """``files`` are by their names, ``asked`` are the paths that were; a wheel's digest is told."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.wait = threading.Event()  # cleared: no file is given before it is set
        self.wait.set()
        self.waiting = threading.Event()  # set where somebody waits for that

    def add(
        self, name: str, version: str = "1.0", tag: str = "py3-none-any", **about: object
    ) -> None:
        data = wheel(name, version, **about)  # type: ignore[arg-type]
        self.files[f"{name}-{version}-{tag}.whl"] = data

    def page(self, name: str) -> bytes | None:
        rows = [
            f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>'
            for file, data in self.files.items()
            if file.partition("-")[0].replace("_", "-") == name
        ]
        return (
            "\n".join(["<!DOCTYPE html><html><body>", *rows, "</body></html>"]).encode()
            if rows
            else None
        )

    def config(self) -> str:
        return f"""
[packages]
index = "http://{NAME}:{self.port}/simple"
[[egress.host]]
name = "{NAME}"
address = "127.0.0.1:{self.port}"
"""

    def configure(self, folder: Path) -> dict[str, str]:
        """The variables of a process whose packages come from here, and are kept in ``folder``."""
        path = folder / "agentd.toml"
        path.write_text(self.config())
        return {"AGENTD_CONFIG": str(path), "XDG_CACHE_HOME": str(folder / "cache")}


@contextmanager
def serving() -> Iterator[Index]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            first, _, rest = self.path.strip("/").partition("/")
            data = index.page(rest) if first == "simple" else index.files.get(rest)
            if first == "files" and not index.wait.is_set():
                index.waiting.set()
                index.wait.wait(120)
            self.send_response(404 if data is None else 200)
            self.send_header(
                "Content-Type", "text/html" if first == "simple" else "application/octet-stream"
            )
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, *_: object) -> None:
            """A client that was killed is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        index = Index(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield index
        finally:
            index.wait.set()
            server.shutdown()
            thread.join()


#: The tag of a wheel that only the Python of this process takes, as "cp313".
OWN = f"cp{sys.version_info.major}{sys.version_info.minor}"
