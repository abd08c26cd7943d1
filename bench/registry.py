"""What images cost: one of 50 MB from a registry, and a build all of whose steps are known."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import peers
from cases import Contender, Work, interleave, reason
from peers import Absent
from stats import Case, Target

_BYTES = 50_000_000
_FILES = Path("/usr/lib")
_LARGEST = 4 << 20
_NAME = "bench:1"
_SECONDS = 60
# Of no base, so that nothing but the build is measured.
_DOCKERFILE = """\
FROM bench:1
ENV A=1
WORKDIR /work
COPY files /work/files
RUN ["/bin/busybox", "touch", "/work/made"]
RUN ["/bin/busybox", "touch", "/work/made2"]
COPY Dockerfile /work/
CMD ["/bin/busybox", "true"]
"""


def registry(rounds: int) -> list[Case]:
    pull = Case("pull", "50 MB from a registry of this machine, unpacked", "ms")
    pull.note = "whole processes, into an empty store; agentd's run skopeo and umoci in a sandbox"
    build = Case("build", "agentd image build, every step cached", "ms")
    build.note = "the whole process; seven steps after FROM, two of them RUN"
    few = max(3, rounds // 10)
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-bench-")))
            place = f"{_registry(stack, folder)}/bench:1"
            _push(folder, place)
        except Exception as why:
            pull.skipped["all"] = build.skipped["all"] = reason(why)
            return [pull, build]
        contenders: dict[str, Contender] = {
            "skopeo and umoci": lambda _: lambda: _fetch(folder, place),
            "agentd image pull": lambda _: lambda: _pull(folder, place),
        }
        interleave(pull, contenders, few, 60)
        built: dict[str, Contender] = {
            "python3 -c pass": lambda _: lambda: peers.run([sys.executable, "-c", "pass"]),
            "agentd image build": lambda _: _build(folder, place),
        }
        interleave(build, built, few, 60)
    ratio = pull.ratio("agentd image pull", "skopeo and umoci")
    pull.targets = [Target("at most 1.3x skopeo and umoci", ratio, 1.3)]
    build.targets = [Target("at most 300 ms", build.median("agentd image build"), 300)]
    return [pull, build]


def _run(*words: str, folder: Path, cache: Path | None = None) -> None:
    """Raises Absent with what it said."""
    env = {"PATH": peers.PATH, "HOME": str(folder), "XDG_CACHE_HOME": str(cache or folder)}
    done = subprocess.run(
        [peers.tool(words[0]), *words[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Absent(f"{words[0]} {words[1]} ended with {done.returncode}: {done.stderr[-300:]}")


def _registry(stack: ExitStack, folder: Path) -> str:
    """Debian's docker-registry at a free port; "HOST:PORT"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": place},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    words = [peers.tool("docker-registry"), "serve", str(folder / "registry.yml")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(peers.end, process.pid)
    deadline = time.monotonic() + _SECONDS
    while True:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", int(place.rpartition(":")[2]))) == 0:
                return place
        if time.monotonic() > deadline:
            raise Absent(f"docker-registry did not listen within {_SECONDS} s")
        time.sleep(0.05)


def _push(folder: Path, place: str) -> None:
    """An image of 50 MB of this machine's libraries, and busybox."""
    layout, bundle = str(folder / "layout"), folder / "bundle"
    _run("umoci", "init", "--layout", layout, folder=folder)
    _run("umoci", "new", "--image", f"{layout}:1", folder=folder)
    _run("umoci", "unpack", "--image", f"{layout}:1", str(bundle), folder=folder)
    (bundle / "rootfs/bin").mkdir()
    shutil.copy(peers.tool("busybox"), bundle / "rootfs/bin/busybox")
    left = _BYTES
    for path in _libraries():
        target = bundle / "rootfs/lib" / path.relative_to(_FILES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        left -= path.stat().st_size
        if left <= 0:
            break
    _run("umoci", "repack", "--image", f"{layout}:1", str(bundle), folder=folder)
    _run(
        *("skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"),
        *(f"oci:{layout}:1", f"docker://{place}"),
        folder=folder,
    )


def _libraries() -> list[Path]:
    found = []
    for top, folders, names in os.walk(_FILES):
        folders.sort()
        paths = [Path(top) / name for name in sorted(names)]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
        if sum(path.stat().st_size for path in paths if path.is_file()) > _BYTES * 100:
            break
    return [path for path in found if path.stat().st_size <= _LARGEST]


def _fetch(folder: Path, place: str) -> float:
    into = folder / uuid4().hex
    into.mkdir()
    start = time.perf_counter()
    _run(
        *("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false"),
        *(f"docker://{place}", f"oci:{into}/layout:1"),
        folder=folder,
    )
    _run("umoci", "unpack", "--image", f"{into}/layout:1", f"{into}/bundle", folder=folder)
    took = time.perf_counter() - start
    shutil.rmtree(into)
    return took * 1000


def _agentd(*words: str, folder: Path, cache: Path) -> None:
    _run(str(Path(sys.executable).with_name("agentd")), *words, folder=folder, cache=cache)


def _pull(folder: Path, place: str) -> float:
    into = folder / uuid4().hex
    into.mkdir()
    start = time.perf_counter()
    words = ("image", "pull", f"docker://{place}", "--insecure", "--name", _NAME)
    _agentd(*words, folder=folder, cache=into)
    took = time.perf_counter() - start
    shutil.rmtree(into)
    return took * 1000


def _build(folder: Path, place: str) -> Work:
    context, cache = folder / "context", folder / "cache"
    (context / "files").mkdir(parents=True)
    for number in range(100):
        (context / f"files/{number}").write_text(f"{number}\n" * 1000)
    (context / "Dockerfile").write_text(_DOCKERFILE)
    words = ("image", "pull", f"docker://{place}", "--insecure", "--name", _NAME)
    _agentd(*words, folder=folder, cache=cache)
    return lambda: _agentd(
        "image", "build", "-t", "built:1", str(context), folder=folder, cache=cache
    )
