"""OCI image layouts for tests, made by hand: what no builder would make, too."""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import platform
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from agentd.client.cli.main import main

_TYPES = "application/vnd.oci.image"
_INDEX = f"{_TYPES}.index.v1+json"
#: An index as docker has it.
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "gzip": functools.lru_cache(8)(lambda data: gzip.compress(data, 1, mtime=0)),
    "zstd": zstandard.compress,
    # Those below do not say of how many bytes all of their archive is.
    "gzip in parts": lambda data: gzip.compress(data[:-700]) + gzip.compress(data[-700:]),
    "zstd in parts": lambda data: zstandard.compress(data[:-700]) + zstandard.compress(data[-700:]),
    "zstd of a stream": zstandard.ZstdCompressor(write_content_size=False).compress,
}
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def file(
    path: str, data: bytes = b"", mode: int = 0o644, **more: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """An entry of a layer; ``more`` are TarInfo's fields."""
    info = tarfile.TarInfo(path)
    info.mode, info.size = mode, len(data)
    for name, value in more.items():
        setattr(info, name, value)
    return info, data


def folder(path: str, mode: int = 0o755, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    return file(path, mode=mode, type=tarfile.DIRTYPE, **more)


def link(path: str, target: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    kind = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    return file(path, mode=0o777, type=kind, linkname=target)


def device(path: str) -> tuple[tarfile.TarInfo, bytes]:
    return file(path, mode=0o666, type=tarfile.BLKTYPE, devmajor=8, devminor=0)


BUSYBOX = Path("/bin/busybox")  # of busybox-static: no library, no loader


def busybox(*more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer of the smallest root in which commands run; skips where Debian's is not installed."""
    if not is_static(BUSYBOX):
        pytest.skip("busybox-static is not installed")
    names = "sh cat env grep id ls mkdir pwd readlink stat test touch"
    links = [link(f"bin/{name}", "busybox") for name in names.split()]
    program = file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    return layer(folder("bin"), program, *links, *more)


def is_static(program: Path) -> bool:
    """Return whether no loader is named in an ELF file of 64 bits (PT_INTERP is 3)."""
    if not program.exists():
        return False
    data = program.read_bytes()
    start, size, count = struct.unpack_from("<Q14xHH", data, 32)
    kinds = [struct.unpack_from("<I", data, start + size * n)[0] for n in range(count)]
    return 3 not in kinds


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


class Layout:
    """A layout at ``path``, in which ``add`` puts images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._index: list[dict[str, Any]] = []

    def add(
        self,
        layers: Sequence[bytes],
        config: dict[str, Any] | None = None,
        *,
        tag: str = "latest",
        packed: str = "gzip",
        diff_ids: Sequence[str] | None = None,
    ) -> str:
        """The text that ``agentd image pull`` takes. ``diff_ids``: instead of the true ones."""
        self.tag(self.image(layers, config, packed=packed, diff_ids=diff_ids), tag)
        return f"oci:{self.path}:{tag}"

    def add_index(self, images: dict[str, Sequence[bytes]], tag: str) -> str:
        """An image of several architectures."""
        self.tag(self.index(images), tag)
        return f"oci:{self.path}:{tag}"

    def index(self, images: dict[str, Sequence[bytes]], kind: str = _INDEX) -> dict[str, Any]:
        """The descriptor of one."""
        return self.index_of(
            [
                self.image(layers, None, architecture=name)
                | {"platform": {"os": "linux", "architecture": name}}
                for name, layers in images.items()
            ],
            kind,
        )

    def index_of(self, manifests: Sequence[dict[str, Any]], kind: str = _INDEX) -> dict[str, Any]:
        return self._json(kind, {"manifests": manifests})

    def image(
        self,
        layers: Sequence[bytes],
        config: dict[str, Any] | None,
        *,
        packed: str = "gzip",
        diff_ids: Sequence[str] | None = None,
        architecture: str = ARCHITECTURE,
    ) -> dict[str, Any]:
        """The descriptor of a manifest."""
        kind = f"{_TYPES}.layer.v1.tar" + (f"+{packed.split(maxsplit=1)[0]}" if packed else "")
        blobs = [self.put(kind, _PACK[packed](data)) for data in layers]
        true = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
        told = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids or true)},
        }
        manifest = {"config": self._json(f"{_TYPES}.config.v1+json", told), "layers": blobs}
        return self._json(f"{_TYPES}.manifest.v1+json", manifest)

    def put(self, kind: str, data: bytes) -> dict[str, Any]:
        """The descriptor of a blob."""
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    def _json(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        whole = {"schemaVersion": 2, "mediaType": kind, **value}
        return self.put(kind, json.dumps(whole).encode())

    def tag(self, descriptor: dict[str, Any], tag: str) -> None:
        named = {"annotations": {"org.opencontainers.image.ref.name": tag}}
        self._index.append(descriptor | named)
        whole = {"schemaVersion": 2, "manifests": self._index}
        (self.path / "index.json").write_text(json.dumps(whole))


class Images:
    """``agentd image`` with a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.env = os.environ | {"HOME": str(folder), "XDG_CACHE_HOME": str(self.cache)}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "agentd", "image", *words],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int | None = 0) -> "subprocess.CompletedProcess[str]":
        """In this process: to start one a command would be most of the time."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(self.cache))
            patch.chdir(self.folder)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                ended = main(["image", *words])
        out.seek(0)
        done = subprocess.CompletedProcess(list(words), ended, out.read(), err.getvalue())
        assert code is None or ended == code, done
        return done

    def told(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code).stdout)

    def root(self, name: str) -> Path:
        return Path(self.told("inspect", name)["root"])

    def left(self) -> list[str]:
        """What pulls that ended have left."""
        return os.listdir(self.cache / "agentd/oci/work")
