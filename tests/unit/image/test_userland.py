"""What the guest's Python is made of comes from the packages: their links lead to no file here."""

import sys
from pathlib import Path

import pytest

from agentd.image import userland

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_FOLDER = "usr/lib/python3.99"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Packages, unpacked; their loader runs the Python that is here."""
    tree = tmp_path / "tree"
    for folder in ("usr/bin", _LIBRARIES, f"{_FOLDER}/lib-dynload", "etc/python3.99"):
        (tree / folder).mkdir(parents=True)
    loader = tree / _LIBRARIES / "ld-linux-x86-64.so.2"
    loader.write_text(f'#!/bin/sh\nunset PYTHONHOME\nshift 3\nexec {sys.executable} "$@"\n')
    loader.chmod(0o755)
    (tree / "usr/bin/python3.99").write_bytes(b"")
    (tree / "etc/python3.99/sitecustomize.py").write_text("found = 'in the package'\n")
    return tree


@pytest.mark.parametrize(
    "target", ["/etc/python3.99/sitecustomize.py", "../../../etc/python3.99/sitecustomize.py"]
)
def test_a_link_is_followed_within_the_packages(tree: Path, target: str) -> None:
    (tree / _FOLDER / "sitecustomize.py").symlink_to(target)
    made = userland.python(str(tree), "3.99", small=False)
    assert b"in the package" in made[f"/{_FOLDER}/sitecustomize.pyc"].data


def test_a_file_of_this_machine_is_not_taken_for_theirs(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text("found = 'here'\n")
    (tree / _FOLDER / "sitecustomize.py").symlink_to(tmp_path / "here.py")
    with pytest.raises(FileNotFoundError):
        userland.python(str(tree), "3.99", small=False)
