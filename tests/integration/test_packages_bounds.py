"""What keeps packages from taking more, lasting longer, or saying more than they may: each control
by itself."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.index import NAME, Index
from tests.integration.test_packages import (
    _PLACE,
    demo_needs_evil,
    fails,
    index,
    own,
    packages,
    sets,
)

from agentd import InvalidInput, Refused, Sandbox, SandboxError, Unavailable
from agentd.daemon.packages import inside, pip, resolve
from agentd.daemon.packages.provide import EXACT_SECONDS
from agentd.linux.replacing import replacing
from agentd.model.packages import packages_of
from agentd.sandbox import packages as kept
from agentd.sandbox.packages import PackageStore

__all__ = ["index", "own"]  # fixtures

_DAY = 86400.0
_USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _made(*names: str) -> list[str]:
    """What a sandbox with these has, as its report says."""
    with Sandbox.create(packages=names, embedded=True) as sandbox:
        detail = sandbox.enforcement["packages"].detail
        return [each.split("==")[0] for each in detail.split("; ")]


def _grow_old(own: Path, seconds: float) -> None:
    """Have everything that a request became be of so long ago."""
    for path in own.glob("cache/agentd/packages/requests/*.json"):
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "time": time.time() - seconds}))


def test_what_a_request_became_holds_for_a_day_and_with_all_versions_for_thirty(
    index: Index, own: Path
) -> None:
    index.add("demo")
    for name, again in (("demo", True), ("demo==1.0", False)):
        assert _made(name) == ["demo"]
        _grow_old(own, 2 * _DAY)
        asked = len(index.asked)
        assert _made(name) == ["demo"]
        assert (len(index.asked) > asked) is again, name
    store = PackageStore()
    keys = [path.stem for path in own.glob("cache/agentd/packages/requests/*.json")]
    # From the future it is no better: a clock was wrong.
    for days, held in ((2, True), (31, False), (-2, False)):
        _grow_old(own, days * _DAY)
        assert [bool(store.recall(key, EXACT_SECONDS)) for key in keys] == [held] * 2


def test_what_requests_became_is_forgotten_once_it_is_old_or_gone(index: Index, own: Path) -> None:
    requests = own / "cache/agentd/packages/requests"
    for name in ("demo", "second"):
        index.add(name)
    with Sandbox.create(packages=["demo"], embedded=True):
        _grow_old(own, 31 * _DAY)
        (old,) = requests.iterdir()
        assert _made("second") == ["second"]
        assert old.exists() is False
        packages("prune")  # what no sandbox has goes, and what became of asking for it
        assert list(requests.iterdir()) == []


def test_packages_are_no_larger_than_there_is_room_for(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "_ROOM", 4 << 20)
    monkeypatch.setenv("AGENTD_PACKAGES__SIZE", "1M")
    index.add("demo", files={"demo.py": "", "large.txt": "x" * (16 << 20)})
    with pytest.raises(InvalidInput, match="larger than there is room for"):
        _made("demo")
    assert not sets(own)


def test_empty_files_take_room_as_well(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk has so many files, and they are there for good: by their bytes they never go."""
    monkeypatch.setenv("AGENTD_PACKAGES__SIZE", "4M")
    for name in ("demo", "second"):
        index.add(name, files={f"{name}.py": "", **{f"{name}_/{at}": "" for at in range(600)}})
        assert _made(name) == [name]
    (left,) = json.loads(packages("ls", "--json"))
    assert left["packages"][0]["name"] == "second"


@pytest.mark.parametrize("text", ["{", "another's"])
def test_what_is_damaged_is_pruned_and_fetched_anew(text: str, index: Index, own: Path) -> None:
    index.add("demo")
    index.add("second")
    assert _made("second") == ["second"]
    (second,) = sets(own)
    another = second.read_text()
    assert _made("demo") == ["demo"]
    (demo,) = set(sets(own)) - {second}
    demo.write_text(another if text == "another's" else text)
    with pytest.raises(SandboxError, match=r"are damaged.*agentd packages prune"):
        _made("demo")
    whole = PackageStore().about(f"sha256:{second.parent.name}").bytes
    assert json.loads(packages("prune", "--json"))["freed"] > whole
    assert not demo.exists()
    assert _made("demo") == ["demo"]


def test_who_forgets_takes_nothing_away_that_is_being_written(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def interrupted(path: str, mode: int) -> Iterator[BinaryIO]:
        pruning = threading.Thread(target=lambda: PackageStore().prune(1 << 40))
        with replacing(path, mode) as file:
            yield file
            pruning.start()
            pruning.join(1.0)  # it ends in between, unless it waits

    index.add("demo")
    monkeypatch.setattr(kept, "replacing", interrupted)
    assert _made("demo") == ["demo"]


def test_what_a_wheel_says_of_itself_is_bounded(index: Index, own: Path) -> None:
    """It is read where it is not a sandbox's memory: by the daemon."""
    index.add("demo")
    ((file, data),) = index.files.items()
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as before,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for each in before.namelist():
            about = b"\n" + b"x" * (33 << 20) if each.endswith("METADATA") else b""
            archive.writestr(each, before.read(each) + about)
    index.files[file] = packed.getvalue()
    with pytest.raises(InvalidInput, match="over 32 MiB"):
        _made("demo")
    assert not sets(own)


def test_a_request_becomes_so_many_packages(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "MAX_LOCKED", 1)
    index.add("demo", needs=["needed"])
    index.add("needed")
    with pytest.raises(InvalidInput, match="2 packages, over 1"):
        _made("demo")
    assert _made("needed") == ["needed"]


def test_a_page_without_end_takes_so_much_memory(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _driven(monkeypatch, lambda was: was.replace("MEMORY = 1 << 30", "MEMORY = 192 << 20"))
    index.add("demo")
    assert _made("demo") == ["demo"]
    monkeypatch.setattr(index, "page", lambda _: b"<!-- " + b"x" * (256 << 20) + b" -->")
    with pytest.raises(InvalidInput, match="MiB of memory"):
        _made("second")


def test_who_may_have_less_memory_than_pip_is_given_fetches_by_that(
    index: Index, own: Path
) -> None:
    index.add("demo")
    argv = ["prlimit", f"--data={768 << 20}", sys.executable, "-m", "agentd", "run", "--embedded"]
    words = [*argv, "--with", "demo", "--", "true"]
    ran = subprocess.run(words, check=False, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr


def test_an_index_that_takes_its_time_is_given_up(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "SECONDS", 2.0)
    index.add("demo")
    index.wait.clear()
    try:
        with pytest.raises(Unavailable, match="were not there within 2 s"):
            _made("demo")
    finally:
        index.wait.set()
    assert not sets(own)


def test_what_an_index_says_without_a_digest_is_not_taken(index: Index, own: Path) -> None:
    index.add("demo")
    ((file, data),) = index.files.items()
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    page = f'<!DOCTYPE html><a href="/files/{file}#md5={digest}">{file}</a>'.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "page", lambda _name: page)
        assert "no wheel with a sha256 of demo" in fails("--with", "demo", "--", "true")
    assert not sets(own)


def test_where_others_could_write_none_are_kept(index: Index, own: Path) -> None:
    index.add("demo")
    folder = own / "cache/agentd/packages"
    folder.mkdir(parents=True)
    for mode in (0o775, 0o757):
        folder.chmod(mode)
        line = fails("--with", "demo", "--", "true")
        assert "could be written by others" in line and "chmod 755" in line


@pytest.mark.root
def test_at_the_process_level_their_path_is_open_or_they_are_refused(
    index: Index, own: Path
) -> None:
    index.add("demo")
    own.chmod(0o700)
    with pytest.raises(Refused, match="closed to its commands"):
        Sandbox.create(packages=["demo"], backend="landlock", embedded=True)


def test_a_request_has_so_many_characters() -> None:
    long = "a" * 500
    assert packages_of(long) == (long,)
    for each in ("a" * 513, [f"{'a' * 500}{at}" for at in range(9)]):
        with pytest.raises(InvalidInput, match=r"is not a name|over 4096 characters"):
            packages_of(each)


def _driven(monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str]) -> None:
    """Have what runs pip in its sandbox be another program."""
    text = inside.text

    def other(name: str) -> str:
        was = text(name)
        if name == "driver":
            now = change(was)
            assert now != was
            return now
        return was

    monkeypatch.setattr(inside, "text", other)


_PLANT = """
    import os
    if "--require-hashes" in sys.argv:
        os.makedirs("/workspace/site", exist_ok=True)
        {}
        sys.exit(0)
"""


@pytest.mark.parametrize(
    "plant",
    [
        'os.symlink("/etc", "/workspace/site/out")',
        'os.symlink("../../../..", "/workspace/site/out")',
    ],
)
def test_what_a_sandbox_that_was_taken_over_leaves_does_not_lead_elsewhere(
    plant: str, index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That they are unpacked in. By: what is copied out has no such links, on whatever side."""
    index.add("demo")
    main = "def main() -> int:\n"
    _driven(monkeypatch, lambda was: was.replace(main, main + _PLANT.format(plant)))
    with pytest.raises(SandboxError, match="may not come out of their sandbox"):
        _made("demo")
    assert not sets(own)


@pytest.mark.parametrize(
    ("control", "instead"),
    [
        ("    refuse_builds()\n", "    sys.addaudithook(refuse_programs)\n"),
        ("    sys.addaudithook(refuse_programs)\n", ""),
    ],
)
def test_no_code_of_a_package_runs_by_either_of_two_controls(
    control: str, instead: str, index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is left out, and the other holds: pip builds nothing, and starts no program."""
    file = demo_needs_evil(index)
    _driven(monkeypatch, lambda was: was.replace(control, instead))
    with pytest.raises((InvalidInput, SandboxError)):
        _made("demo")
    assert f"/files/{file}" in index.asked
    assert "/ran" not in index.asked
    assert not sets(own)


_CURIOUS = """#!/bin/sh
export PATH={usual}
machine=$(uname -m)
grep -q nameserver /etc/resolv.conf 2>/dev/null && machine=reached
test -n "$SAID$TOKEN" && machine=told
touch /curious/written
python3 "$@" | sed "s/\\(\\"platform_machine\\": \\)\\"[a-z0-9_]*\\"/\\1\\"$machine\\"/"
"""


def test_a_python_that_is_asked_what_it_is_has_no_network_and_writes_nothing(
    index: Index, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the caller's, and its word decides among wheels. By: the sandbox that it is asked in
    has of the caller's what leads to it, to be read, and nothing else."""
    folder = own / "curious"
    folder.mkdir()
    program = folder / "python3"
    program.write_text(_CURIOUS.format(usual=_USUAL))
    program.chmod(0o755)
    for kind in ("reached", "told"):
        index.add(kind)
    needs = [f'{kind}; platform_machine == "{kind}"' for kind in ("reached", "told")]
    index.add("demo", needs=needs)
    monkeypatch.setenv("TOKEN", "a-token-of-some-length-that-is-used")
    with Sandbox.create(
        packages="demo",
        embedded=True,
        net=[f"{NAME}:{index.port}"],
        secrets=[f"TOKEN=env:TOKEN@{NAME}:{index.port}"],
        mounts=[f"{folder}:/curious:rw"],
        env={"PATH": f"/curious:{_USUAL}", "SAID": "x"},
    ) as sandbox:
        detail = sandbox.enforcement["packages"].detail
        assert "demo==1.0" in detail and "reached" not in detail and "told" not in detail
        assert os.listdir(folder) == ["python3"]
        # And in the sandbox itself all of it is had.
        had = "grep -q nameserver /etc/resolv.conf && test -n $SAID && touch /curious/x && ls "
        assert "demo.py" in sandbox.run(had + _PLACE, check=True).text
