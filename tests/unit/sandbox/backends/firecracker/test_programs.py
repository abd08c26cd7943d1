import os
from pathlib import Path

import pytest
from tests.firecracker.programs import make

from agentd.sandbox.backends.firecracker.programs import Programs, examine, find

pytestmark = pytest.mark.root  # programs must be root's


def said(programs: Programs) -> list[str]:
    return [blocker.what for blocker in examine(programs)[1]]


def test_two_of_one_release_are_fine(place: Path) -> None:
    version, blockers = examine(Programs(**make(place, "1.16.1")))
    assert str(version) == "1.16.1"
    assert blockers == []


def test_what_is_missing_is_named_with_where_to_get_it(place: Path) -> None:
    assert find(str(place)) == Programs("", "")
    version, blockers = examine(find(str(place)))
    assert version is None
    assert [blocker.what for blocker in blockers] == [
        "firecracker is not installed",
        "jailer is not installed",
    ]
    assert "releases" in blockers[0].fix


def test_an_old_one_and_two_of_different_releases_are_refused(place: Path) -> None:
    assert "1.13.1 is too old" in said(Programs(**make(place, "1.13.1")))[0]
    assert said(Programs(**make(place, "1.16.1", jailer_version="1.15.1"))) == [
        "firecracker is 1.16.1 and jailer 1.15.1"
    ]


def test_one_that_others_can_change_is_not_run_as_root(place: Path) -> None:
    programs = Programs(**make(place))
    os.chmod(programs.jailer, 0o775)  # noqa: S103
    assert said(programs) == [f"{programs.jailer} can be changed by others than root"]


def test_one_that_cannot_be_run_and_one_that_says_nothing_are_told(place: Path) -> None:
    programs = Programs(**make(place))
    Path(programs.firecracker).write_text("#!/nonexistent\n")
    assert "cannot be run" in said(programs)[0]
    Path(programs.firecracker).write_text("#!/bin/true\n")
    assert "names no version" in said(programs)[0]
