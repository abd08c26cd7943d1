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
from tests.oci import Layout, file, layer

from agentd import Sandbox, SandboxError
from agentd.client.cli.main import main

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
__all__ = ["builds", "on_base"]  # fixtures
_MEMORY = 512 << 20
_LARGE = 400 << 20


def bounded(made: Builds, text: str, memory: int | str = _MEMORY) -> Any:
    """A build in a process that gets so much address space; its end, whatever it is."""
    (made.context / "Dockerfile").write_text(text)
    command = [sys.executable, "-m", "agentd", "image", "build", "-t", "mine"]
    return subprocess.run(
        ["prlimit", f"--as={memory}", *command, str(made.context)],
        env=made.env, capture_output=True, text=True, timeout=60, check=False,
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


@pytest.mark.parametrize(
    "pattern",
    ["**/" * 25 + "x", "*a" * 60, "**a" * 40, "a/**/*a*/**/a*/**/" * 9 + "x", "*" * 300 + "x"],
    ids=["folders", "stars", "any", "mixed", "one"],
)
@pytest.mark.parametrize("word", [".", "pattern"])
def test_a_pattern_takes_no_time_that_grows_with_its_wildcards(
    pattern: str, word: str, builds: Builds
) -> None:
    if word == "pattern" and "/" in pattern:
        pattern = pattern.replace("/", "")
    deep = builds.context / "/".join(["a" * 8] * 25)
    deep.mkdir(parents=True)
    (builds.context / ("a" * 200 + "b")).write_text("")
    (builds.context / ".dockerignore").write_text(f"Dockerfile\n{pattern if word == '.' else ''}")
    text = f"FROM scratch\nCOPY {pattern if word == 'pattern' else word} /all/\n"
    done = bounded(builds, text, "unlimited")
    if word == ".":
        assert done.returncode == 0, done.stderr
    else:
        assert "nothing in the context fits" in done.stderr and done.returncode == 2


def test_a_pattern_that_is_none_is_named_by_its_line(builds: Builds) -> None:
    for text, told in (
        ("a\n[b\n", ".dockerignore: line 2: nothing ends the ["),
        ("#\n\n" + "x" * 5000, ".dockerignore: line 3: 'xxx"),
        ("x\n" * 10_001, ".dockerignore: line 10001: over 10000 patterns"),
    ):
        (builds.context / ".dockerignore").write_text(text)
        assert told in builds.build("FROM scratch\nCOPY . /\n", code=2).stderr


def test_no_link_leads_around_dockerignore(builds: Builds) -> None:
    context = builds.context
    (context / "sd/in").mkdir(parents=True)
    for name in ("secret", "sd/x", "sd/in/y", "open"):
        (context / name).write_text(name)
    links = {"pub": "secret", "pubd": "sd", "again": "pubd", "in": "sd/in", "ok": "open"}
    for name, target in links.items():
        (context / name).symlink_to(target)
    ignored = context / ".dockerignore"
    ignored.write_text("secret\nsd\n")
    for word in ("secret", "sd", "sd/x", "pub", "pubd", "pubd/x", "again/x", "again", "in", "in/y"):
        done = builds.build(f"FROM scratch\nCOPY {word} /p\n", code=2)
        assert "is left out of the context by .dockerignore" in done.stderr, word
    done = builds.build("FROM scratch\nCOPY pu* sd/* pubd/* /p/\n", code=2)
    assert "nothing in the context fits pu*" in done.stderr
    builds.build("FROM scratch\nCOPY o* /p/\nCOPY ok /q\n")
    ignored.write_text("secret\nsd\n!sd/x\n")
    builds.build("FROM scratch\nCOPY pubd /p/\nCOPY again/x /q/\n")
    builds.build("FROM scratch\nCOPY pubd /p/\n")
    assert sorted(builds.files()) == ["p", "p/x"]


def test_a_file_that_is_a_pipe_is_not_waited_for(builds: Builds) -> None:
    os.mkfifo(builds.folder / "pipe")
    done = builds.run("build", "-t", "mine", "-f", "pipe", "context", code=2)
    assert "pipe is no plain file (make it a plain file; what comes by a pipe is" in done.stderr
    (builds.context / "Dockerfile").write_text("FROM scratch\nLABEL a=b\n")
    os.mkfifo(builds.context / ".dockerignore")
    done = builds.run("build", "-t", "mine", "context", code=2)
    assert "context/.dockerignore is no plain file" in done.stderr
    (builds.context / "Dockerfile").unlink()
    os.mkfifo(builds.context / "Dockerfile")
    done = builds.run("build", "-t", "mine", "context", code=2)
    assert "context/Dockerfile is no plain file" in done.stderr


def test_names_that_are_no_utf_8(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of the command line may be any bytes."""
    text = "FROM scratch\nARG X\nLABEL a=$X\n"
    for word in ("X=\udcff", "\udcff=1"):
        done = builds.build(text, "--build-arg", word, code=2)
        assert "--build-arg" in done.stderr and "internal" not in done.stderr
    monkeypatch.setenv("X", "\udcff")
    done = builds.build(text, "--build-arg", "X", code=2)
    assert "--build-arg X is not UTF-8" in done.stderr
    odd = builds.folder / "\udcff"
    odd.mkdir()
    (odd / "file\udcff").write_text("FROM scratch\nCOPY . /\n")
    builds.run("build", "-t", "mine", "-f", "\udcff/file\udcff", "\udcff")
    assert len(builds.files()) == 1
    assert builds.told("inspect", "mine")["source"].startswith("dockerfile:/")
    builds.build(text, "--target", "\udcff", code=2)


@pytest.mark.parametrize(
    "config",
    [
        {"ExposedPorts": "abc"}, {"ExposedPorts": [1]}, {"Shell": {"a": 1}}, {"Shell": [1, 2]},
        {"Shell": "sh"}, {"Volumes": [1]}, {"OnBuild": "RUN x"}, {"StopSignal": 9},
        {"Env": "A=b"}, {"Labels": ["a"]}, {"User": 1}, {"WorkingDir": ["/"]}, {"Cmd": "x"},
        {"Entrypoint": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_base_whose_configuration_is_odd_is_refused(
    config: dict[str, Any], builds: Builds, tmp_path: Path
) -> None:
    source = Layout(tmp_path / "layout").add([layer(file("x"))], config)
    pulled = builds.run("pull", source, "--name", "base", code=None)
    if pulled.returncode:  # it is refused where it comes from
        assert "internal error" not in pulled.stderr and "onfig" in pulled.stderr
        return
    text = 'FROM base\nENV A=b\nLABEL a=b\nEXPOSE 80\nWORKDIR /w\nCMD x\nENTRYPOINT ["y"]\n'
    done = builds.build(text, code=125)
    assert "Dockerfile:1: FROM base: the image's configuration is unreadable" in done.stderr


def test_a_run_makes_no_layer_of_holes(on_base: Builds) -> None:
    """Nor a file, nor many: a layer has them as zeros, on this machine's disk."""
    before = on_base.store()
    for size, count in (("20G", 1), ("200M", 3)):
        run = " && ".join(f"busybox truncate -s {size} /sparse{n}" for n in range(count))
        done = on_base.build(f"FROM base\nRUN {run}\n", code=125)
        assert "Dockerfile:2: RUN: the layer would be larger than 512 MiB with 'spa" in done.stderr
        assert on_base.store() == before and on_base.left() == []
    on_base.build("FROM base\nRUN busybox truncate -s 3M /s\n", "--disk", "4M")
    done = on_base.build("FROM base\nRUN busybox truncate -s 5M /s\n", "--disk", "4M", code=125)
    assert "larger than 4 MiB with 's'" in done.stderr and "--disk" in done.stderr
    with Sandbox.create(image="base", writable=True, disk="4M") as box:
        box.run("busybox truncate -s 5M /s", check=True)
        with pytest.raises(SandboxError, match="larger than 4 MiB with 's'"):
            box.commit("mine")
    assert on_base.left() == []


def test_a_passwd_that_is_a_folder_has_no_users(on_base: Builds) -> None:
    text = "FROM base\nRUN rm -r /etc/passwd && mkdir /etc/passwd\nRUN echo $HOME > /home-of\n"
    on_base.build(text)
    assert on_base.files()["home-of"].size == len("/root\n")


def test_stages_in_a_row_of_any_length_are_built(builds: Builds) -> None:
    """One from the other, and one with a file of the other."""
    row = "".join(f"FROM s{n} AS s{n + 1}\n" for n in range(1200))
    builds.build(f"FROM scratch AS s0\nCOPY Dockerfile /x\n{row}")
    assert set(builds.files()) == {"x"}
    row = "".join(f"FROM scratch AS s{n + 1}\nCOPY --from=s{n} /x /x\n" for n in range(600))
    builds.build(f"FROM scratch AS s0\nCOPY Dockerfile /x\n{row}")
    assert set(builds.files()) == {"x"}


def test_stages_that_variables_name_lie_in_each_other_so_deep_at_most(builds: Builds) -> None:
    """Which they are is not known before the last of them is begun."""
    copy = "ARG N=s\nCOPY --from=${N}%d /x /x\n"
    for count, code in ((50, 0), (300, 2)):
        row = "".join(f"FROM scratch AS s{n + 1}\n{copy % n}" for n in range(count))
        done = builds.build(f"FROM scratch AS s0\nCOPY Dockerfile /x\n{row}", code=code)
    assert "over 64 stages lie one in another, by variables of --from" in done.stderr


def test_what_a_stage_says_is_kept_once_for_all_that_are_made_of_it(builds: Builds) -> None:
    """A configuration has a megabyte, and there may be two thousand stages."""
    row = "".join(f"FROM s{n} AS s{n + 1}\n" for n in range(1000))
    text = f"FROM scratch AS s0\nENV A={'a' * 1_000_000}\n{row}STOPSIGNAL none of them\n"
    done = bounded(builds, text)
    assert done.returncode == 2 and "STOPSIGNAL none of them" in done.stderr
