"""The search for a program, rlimits, and the state a child must not inherit."""

import errno
import os
import resource
from pathlib import Path

import pytest

from agentd.guest import spawn
from agentd.guest.lookup import first_executable


def make(folder: Path, mode: int) -> Path:
    folder.mkdir()
    program = folder / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(mode)
    return folder


class Tried:
    """Stands for exec: refuses with the errors given for a path."""

    def __init__(self, **errors: int) -> None:
        self.paths: list[str] = []
        self.errors = errors

    def __call__(self, program: bytes) -> int:
        self.paths.append(os.fsdecode(program))
        code = self.errors.get(os.path.basename(os.path.dirname(os.fsdecode(program))))
        if code is not None:
            raise OSError(code, "")
        return 42


def search(tmp_path: Path, path: str, tried: Tried) -> int:
    folders = ":".join(str(tmp_path / name) for name in path.split(":"))
    return first_executable(b"tool", folders.encode(), tried)


def test_the_first_that_works_counts(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make(tmp_path / name, 0o755)
    tried = Tried(a=errno.EACCES)
    assert search(tmp_path, "none:a:b:c", tried) == 42
    assert [Path(path).parent.name for path in tried.paths] == ["a", "b"]


def test_denied_is_remembered_over_missing(tmp_path: Path) -> None:
    make(tmp_path / "a", 0o644)
    with pytest.raises(PermissionError):
        search(tmp_path, "a:none", Tried(a=errno.EACCES))


def test_a_directory_of_that_name_is_denied(tmp_path: Path) -> None:
    (tmp_path / "a" / "tool").mkdir(parents=True)
    tried = Tried()
    with pytest.raises(PermissionError):
        search(tmp_path, "a", tried)
    assert tried.paths == []


def test_another_error_ends_the_search(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, 0o755)
    with pytest.raises(OSError, match=f"{errno.ENOEXEC}"):
        search(tmp_path, "a:b", Tried(a=errno.ENOEXEC))


def test_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        search(tmp_path, "a:b", Tried())


def test_a_name_with_a_slash_is_taken_as_it_is() -> None:
    tried = Tried()
    assert first_executable(b"./tool", b"/bin", tried) == 42
    assert tried.paths == ["./tool"]


def test_an_empty_element_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", 0o755)
    monkeypatch.chdir(tmp_path / "a")
    tried = Tried()
    assert first_executable(b"tool", b":/bin", tried) == 42
    assert tried.paths == ["tool"]


@pytest.mark.parametrize(
    ("present", "asked", "expected"),
    [
        ((resource.RLIM_INFINITY,) * 2, {"open_files": 9}, (9, 9)),
        ((20, 20), {"open_files": 9}, (9, 9)),
        ((20, 20), {"open_files": 99}, (20, 20)),
    ],
)
def test_limits_only_tighten(
    monkeypatch: pytest.MonkeyPatch,
    present: tuple[int, int],
    asked: dict[str, int],
    expected: tuple[int, int],
) -> None:
    made = {}
    monkeypatch.setattr(resource, "getrlimit", lambda number: present)
    monkeypatch.setattr(resource, "setrlimit", made.__setitem__)
    spawn.set_limits(asked)
    assert made == {resource.RLIMIT_NOFILE: expected}


def test_the_cpu_limit_warns_before_it_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(resource, "setrlimit", made.__setitem__)
    spawn.set_limits({"cpu_s": 3})
    assert made == {resource.RLIMIT_CPU: (3, 4)}


def test_sweep_marks_what_was_left_inheritable() -> None:
    reader, writer = os.pipe()
    try:
        os.set_inheritable(reader, True)
        spawn.sweep_descriptors()
        assert not os.get_inheritable(reader)
    finally:
        os.close(reader)
        os.close(writer)
