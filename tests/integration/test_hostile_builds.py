"""``agentd image build`` of what was made to hurt it, by the command line."""

import contextlib
import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_image_build import Builds, builds, on_base
from tests.oci import file, layer

from agentd.client.cli.main import main

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(120)]
__all__ = ["builds", "on_base"]  # fixtures
_MEMORY = 512 << 20
_LARGE = 400 << 20


def bounded(made: Builds, text: str, *words: str, seconds: float = 60) -> Any:
    """A build in a process that gets so much address space; its end, whatever it is."""
    (made.context / "Dockerfile").write_text(text)
    command = [sys.executable, "-m", "agentd", "image", "build", "-t", "mine", *words]
    return subprocess.run(
        ["prlimit", f"--as={_MEMORY}", *command, str(made.context)],
        env=made.env, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


class _Swapping(io.StringIO):
    """Replaces a file as soon as its step is told of: it was looked at, and is not copied yet."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__()
        self._path, self._data = path, data

    def write(self, text: str) -> int:
        if "] ADD " in text:
            self._path.write_bytes(self._data)
        return super().write(text)


def test_an_archive_that_changes_while_it_is_built_is_not_cached(builds: Builds) -> None:
    """Else the layer of the one would be that of the other, for everybody, from then on."""
    honest, other = (gzip.compress(layer(file("x", data)), mtime=0) for data in (b"good", b"evil"))
    archive = builds.context / "a.tgz"
    archive.write_bytes(honest)
    text = "FROM scratch\nADD a.tgz /\n"
    (builds.context / "Dockerfile").write_text(text)
    errors = _Swapping(archive, other)
    with contextlib.redirect_stderr(errors):
        code = main(["image", "build", "-t", "mine", str(builds.context)])
    assert code != 0 and "a.tgz was changed while it was copied" in errors.getvalue()
    assert "Dockerfile:2: ADD: " in errors.getvalue()
    archive.write_bytes(honest)
    builds.build(text)
    (*_, last) = builds.told("inspect", "mine")["layers"]
    blob = builds.cache / "agentd/oci/blobs/sha256" / last["digest"].removeprefix("sha256:")
    with tarfile.open(blob) as found:
        data = found.extractfile("x")
        assert data is not None and data.read() == b"good"


def header(kind: bytes, size: int, name: str = "h") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def gzipped(begin: bytes, size: int) -> bytes:
    """With so many bytes behind it, which pack well."""
    return gzip.compress(begin) + gzip.compress(b"1\n" * (1 << 19)) * (size >> 20)


def record(name: str, value: str) -> bytes:
    text = f" {name}={value}\n"
    length = len(text) + len(str(len(text)))
    length = len(text) + len(str(length))
    return f"{length}{text}".encode()


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def paxed(*records: tuple[str, str]) -> bytes:
    data = b"".join(record(*each) for each in records)
    return header(tarfile.XHDTYPE, len(data)) + padded(data)


_MANY = b"9" * 11 + b"\n" + b"1\n" * 250  # holes
_SPARSE = paxed(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (gzipped(header(tarfile.XHDTYPE, _LARGE), _LARGE), "a header of more than 1 MiB"),
        (gzipped(header(tarfile.GNUTYPE_LONGNAME, _LARGE), _LARGE), "a header of more than"),
        (
            gzipped(_SPARSE + header(tarfile.REGTYPE, _LARGE) + _MANY, _LARGE),
            "a header of more than 1 MiB",
        ),
        (gzip.compress(header(tarfile.XGLTYPE, 0) * 5000), "cannot be unpacked: "),
        (gzip.compress(layer(file("x", os.urandom(1 << 16))))[:-9000], "cannot be unpacked: "),
        (layer(file("x", bytes(1 << 16)))[:9000], "cannot be unpacked: it ends too early"),
        (paxed(("mtime", "inf")) + header(tarfile.REGTYPE, 0), "a size, time or owner"),
        (paxed(("uid", "-1")) + header(tarfile.REGTYPE, 0), "a size, time or owner"),
    ],
    ids=["pax", "name", "holes", "global", "cut", "short", "time", "owner"],
)  # fmt: skip
def test_an_archive_of_add_takes_no_memory_for_what_it_says(
    data: bytes, told: str, builds: Builds
) -> None:
    (builds.context / "a.tgz").write_bytes(data)
    done = bounded(builds, "FROM scratch\nADD a.tgz /\n")
    assert done.returncode == 2, done.stderr[-500:]
    assert "Dockerfile:2: ADD: a.tgz cannot be unpacked: " in done.stderr and told in done.stderr
    assert builds.left() == []


_MEGABYTE = "x" * 900_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"FROM scratch\nARG A={_MEGABYTE}\nLABEL B={'$A' * 1500}\n", 3),
        (f'FROM scratch\nARG A={_MEGABYTE}\nLABEL B="{"$A" * 1500}"\n', 3),
        (f"FROM scratch\nARG A={_MEGABYTE}\nLABEL B=${{B:-{'$A' * 1500}}}\n", 3),
        (f"ARG A={_MEGABYTE}\nFROM {'$A' * 1500}\n", 2),
        (f"FROM scratch\nARG A={_MEGABYTE}\nARG {' '.join(f'B{n}=$A' for n in range(1500))}\n", 3),
        (f"FROM scratch\nARG A={_MEGABYTE}\nENV {' '.join(f'B{n}=$A' for n in range(1500))}\n", 3),
        (f"FROM scratch\nARG A={_MEGABYTE}\nCOPY {'$A ' * 1500} /\n", 3),
        (f"FROM scratch\nARG A={_MEGABYTE}\nCOPY {'<<E ' * 1500}/\n" + "$A\nE\n" * 1500, 3),
        (f"FROM scratch\nEXPOSE {'0-65535 ' * 50_000}\n", 2),
        (f"FROM scratch\nENV A={_MEGABYTE}\nENV B=$A\n", 3),
    ],
    ids=["word", "quoted", "inner", "from", "args", "env", "words", "heredocs", "ports", "image"],
)
def test_a_small_dockerfile_stays_small(text: str, line: int, builds: Builds) -> None:
    """However often it says what is large; nor does it fill the terminal."""
    done = bounded(builds, text)
    assert done.returncode == 2, done.stderr[-500:]
    assert f"Dockerfile:{line}: " in done.stderr and len(done.stderr) < 5000


@pytest.mark.parametrize("word", ["RUN", "CMD", "SHELL"])
@pytest.mark.parametrize("letter", [r"\u0000", r"\ud800"])
def test_a_word_that_no_program_can_be_given_is_refused(
    word: str, letter: str, builds: Builds
) -> None:
    done = builds.build(f'FROM scratch\n{word} ["x{letter}"]\n', code=2)
    assert f"Dockerfile:2: {word} has a word that no program can be given" in done.stderr
