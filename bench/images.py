"""A fresh sandbox of an OCI image beside one without: from a clone made ahead, and from none."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import service
from cases import Contender, Work, interleave, sandbox_class
from peers import Absent
from stats import Case, Target

_BUSYBOX = Path("/bin/busybox")
_NAME = "bench"
_MOST = 1.3
_MOST_OF_POOL = 1.05
_FULL = 8
_TEMPLATES = """
[[template]]
name = "plain"
image = "bench"
min = 8
max = 24
[[template]]
name = "started"
image = "bench"
start = ["/bin/busybox", "sleep", "100000"]
min = 8
max = 24
"""


def images(rounds: int) -> Case:
    case = Case("image", "fresh sandbox of an image, its first command, destroyed", "ms")
    case.note = (
        "the image is a static busybox; the command is its `true`, and Debian's without an image. "
        "(cold): a whole `agentd run`, with its process and its zygote"
    )
    with _store() as env:
        if isinstance(env, str):
            case.skipped["agentd image"] = env
            return case
        contenders: dict[str, Contender] = {
            "agentd": _fresh({}),
            "agentd image": _fresh({"image": _NAME}),
            "agentd (cold)": _cold(env),
            "agentd image (cold)": _cold(env, "--image", _NAME),
        }
        interleave(case, contenders, rounds, 120)
    case.targets = [
        Target("at most 1.3x one without", case.ratio("agentd image", "agentd"), _MOST),
        Target(
            "cold at most 1.3x one without",
            case.ratio("agentd image (cold)", "agentd (cold)"),
            _MOST,
        ),
    ]
    return case


def templates(rounds: int) -> Case:
    case = Case("template", "sandbox of a warm template, its first command, destroyed", "ms")
    case.note = (
        "by the SDK of a daemon, each from a pool of its own that is full; of the same image as "
        "above. (started): with a start command, which is listed and goes on while the first runs"
    )
    with _store() as env, ExitStack() as stack:
        if isinstance(env, str):
            case.skipped["agentd template"] = env
            return case
        daemon = service.Daemon(stack, more=_TEMPLATES)
        names = {"agentd pool": None, "agentd template": "plain", "agentd (started)": "started"}
        _await_full(daemon.url, len(names) * _FULL)
        contenders = {key: _claimed(daemon.url, name) for key, name in names.items()}
        interleave(case, contenders, rounds, 120)
    ratio = case.ratio("agentd template", "agentd pool")
    case.targets = [Target("at most 1.05x one of the default pool", ratio, _MOST_OF_POOL)]
    return case


def _await_full(url: str, many: int) -> None:
    from agentd import Client

    with Client(url=url) as client:
        while sum(client.machine.stats().pool.values()) < many:
            time.sleep(0.05)


def _claimed(url: str, template: str | None) -> Contender:
    def prepare(_: ExitStack) -> Work:
        create = sandbox_class().create

        def work() -> None:
            with create(url=url, template=template) as box:
                box.run(["/bin/true"], check=True)
                box.kill()

        return work

    return prepare


@contextlib.contextmanager
def _store() -> Iterator[dict[str, str] | str]:
    """The environment with a store that has the image; why not, where it cannot be had."""
    missing = [name for name in ("skopeo", "umoci") if shutil.which(name) is None]
    if missing or not _BUSYBOX.exists():
        yield f"{', '.join(missing) or 'busybox-static'} is not installed"
        return
    with tempfile.TemporaryDirectory(prefix="agentd-bench-") as folder:
        (rootfs := Path(folder, "rootfs/bin")).mkdir(parents=True)
        shutil.copy(_BUSYBOX, rootfs / "busybox")
        (rootfs / "true").symlink_to("busybox")
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        try:
            pull = ["image", "pull", f"dir:{folder}/rootfs", "--name", _NAME]
            subprocess.run([sys.executable, "-m", "agentd", *pull], check=True, capture_output=True)
            yield dict(os.environ)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _fresh(options: dict[str, str]) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        create = sandbox_class().create

        def work() -> None:
            with create(backend="linux", embedded=True, **options) as box:
                box.run(["/bin/true"], check=True)

        for _ in range(4):  # what is asked for often is cloned ahead
            work()
        return work

    return prepare


def _cold(env: dict[str, str], *options: str) -> Contender:
    words = [sys.executable, "-m", "agentd", "run", "--backend", "linux", *options]

    def prepare(_: ExitStack) -> Work:
        def work() -> None:
            done = subprocess.run(
                [*words, "--", "/bin/true"], env=env, capture_output=True, check=False
            )
            if done.returncode:
                raise Absent(done.stderr.decode(errors="replace"))

        return work

    return prepare
