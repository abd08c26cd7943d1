"""Threat: memory runs out, and the host's programs are killed for a sandbox's: agentd is spared by
its service (OOMScoreAdjust=-900), and what it starts has that of it; or a command spares itself.

Controls: what a wall starts takes a score below 0 back, which is then the least that anything below
it may have; where the root can be written to, no file of /proc can.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.image.oci import make_disk, tools
from agentd.linux import process

SCORE = Path("/proc/self/oom_score_adj")
# Of no other process that tests, and no multiple of ten, as those are that systems give.
_NTH = os.getpid() % 720
SPARED = -101 - _NTH - _NTH // 9
OWN = f"""
said("given", open("/proc/self/oom_score_adj").read().strip())
def spared():
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    return os.write(fd, b"{SPARED}")
said("least", tried(spared))
"""
FILES = """
for name in ("oom_score_adj", "comm", "coredump_filter", "attr/exec", "uid_map", "clear_refs"):
    said(name, opens(f"/proc/self/{name}", os.O_WRONLY))
for name in ("pressure/memory", "sysrq-trigger", "sys/kernel/core_pattern"):
    said(name, opens(f"/proc/{name}", os.O_WRONLY))
"""


@pytest.fixture
def spared() -> Iterator[None]:
    before = SCORE.read_text()
    try:
        SCORE.write_text(str(SPARED))
    except PermissionError:
        pytest.skip("a score below 0 takes CAP_SYS_RESOURCE: scripts/machine has it")
    yield
    SCORE.write_text(before)


@pytest.mark.usefixtures("spared")
def test_nothing_of_a_wall_is_spared_as_its_daemon_is(
    sandbox: Callable[..., Any], enclosed: str
) -> None:
    box = sandbox(enclosed)
    if enclosed in ("linux", "oci"):  # the process level sees no /proc, gVisor has its own
        answers = box.attack(OWN)
        assert int(answers["given"]) >= 0
        assert answers["least"] in ("EACCES", "EROFS")
    assert [*_spared()] == [os.getpid()]


@pytest.mark.usefixtures("spared")
@pytest.mark.root
def test_nor_where_all_of_proc_can_be_written(sandbox: Callable[..., Any]) -> None:
    off = {"landlock", "seccomp"}
    answers = sandbox("linux", without=off, user="root").attack(OWN)
    assert int(answers["given"]) >= 0
    assert answers["least"] == "EACCES"


@pytest.mark.usefixtures("spared")
def test_nor_what_unpacks_an_image(tmp_path: Path) -> None:
    said: list[str] = []
    tools.run(["cat", str(SCORE)], work=str(tmp_path), seconds=60, say=said.append)
    assert int(said[0]) >= 0


@pytest.mark.usefixtures("spared")
def test_nor_what_reads_an_image_for_its_disk(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(2000):
        (root / str(number)).touch()
    reader = threading.Thread(target=make_disk._pack, args=(str(root), str(tmp_path / "tar")))
    reader.start()
    scores = []
    while reader.is_alive():
        for pid in process.children(os.getpid()):
            with contextlib.suppress(OSError):
                scores.append(int(Path(f"/proc/{pid}/oom_score_adj").read_text()))
    assert (tmp_path / "tar").exists() and scores[-1] >= 0


@pytest.mark.parametrize("user", ["agent", "root"])
def test_a_root_that_can_be_written_has_no_such_proc(
    sandbox: Callable[..., Any], user: str
) -> None:
    spec = {"user": "root"} if user == "root" else {}
    answers = sandbox("linux", writable=True, **spec).attack(FILES)
    assert set(answers.values()) <= {"EROFS", "EACCES", "ENOENT"}, answers


def _spared() -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int((folder / "oom_score_adj").read_text()) == SPARED:
                yield int(folder.name)
