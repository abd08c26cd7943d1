"""A scope of the user's systemd, as far as it can be told without one: what it is not asked for.

With a systemd it is tried in emulated machines: tests/machine/scope_checks.py.
"""

import os
from pathlib import Path

import pytest

from agentd.linux.cgroup import scope

UID = os.geteuid()
SESSION = f"/user.slice/user-{UID}.slice/session-1.scope"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of groups, to be made in here."""
    monkeypatch.setattr(scope, "_MOUNT", str(tmp_path))
    return tmp_path


def group(tree: Path, path: str, **values: str) -> None:
    folder = Path(f"{tree}{path}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("_", ".")).write_text(f"{value}\n")


def test_its_name_is_found_from_within() -> None:
    own = f"/user.slice/user-{UID}.slice/user@{UID}.service/app.slice/agentd-12-ab.scope"
    assert scope.current(f"0::{own}/agentd-host\n") == "agentd-12-ab.scope"
    assert scope.current(f"0::{SESSION}\n") == ""
    assert scope.current("1:memory:/\n") == ""


def test_a_session_without_limits_is_left(tree: Path) -> None:
    group(tree, SESSION, memory_max="max", memory_high="max", cpu_max="max 100000", cpuset_cpus="")
    assert scope._kept(SESSION) == ""


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (SESSION, {"memory_max": "1073741824"}),
        (SESSION, {"memory_high": "1073741824"}),
        (SESSION, {"cpu_max": "50000 100000"}),
        (SESSION, {"cpuset_cpus": "0-3"}),
        ("/system.slice/slurmstepd.scope/job_7", {"memory_max": "4096"}),
    ],
)
def test_no_limit_is_left_by_moving(tree: Path, path: str, limit: dict[str, str]) -> None:
    group(tree, path, **limit)
    name = next(iter(limit)).replace("_", ".")
    for own in (path, f"{path}/step_0"):
        assert f"{path}, has a limit ({name} is {next(iter(limit.values()))})" in scope._kept(own)


def test_what_holds_a_scope_as_well_is_no_hindrance(tree: Path) -> None:
    group(tree, f"/user.slice/user-{UID}.slice", memory_max="4096")
    group(tree, SESSION, memory_max="max")
    assert scope._kept(SESSION) == ""


def test_the_first_process_of_a_service_stays(tree: Path) -> None:
    """Our own parent is in another group than this one."""
    assert "first process of runner.service" in scope._kept("/system.slice/runner.service")


def test_a_user_without_a_manager_or_a_bus_is_told_so(tmp_path: Path) -> None:
    none, why = scope._bus({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (none, "loginctl enable-linger" in why) == ("", True)
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "private").touch()
    assert "dbus-user-session" in scope._bus({"XDG_RUNTIME_DIR": str(tmp_path)})[1]
    (tmp_path / "bus").touch()
    assert scope._bus({"XDG_RUNTIME_DIR": str(tmp_path)}) == (f"{tmp_path}/bus", "")
