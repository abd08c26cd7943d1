"""``agentd doctor`` tells of other distributions that have the import name ``agentd``."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def installed(folder: Path, name: str, version: str, *files: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{path},sha256=00,1\n" for path in files))


def doctor(folder: Path, *words: str) -> str:
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    ran = subprocess.run(
        [sys.executable, "-m", "agentd", "doctor", *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ran.stdout


@pytest.fixture
def site(tmp_path: Path) -> Path:
    installed(tmp_path, "agentd", "0.13.0", "agentd/__init__.py", "agentd/cli.py")
    installed(tmp_path, "Some_Fork", "2.0", "other.py", "agentd/__init__.py")
    installed(tmp_path, "agentd-plugin", "1.0", "agentd_plugin/__init__.py", "x/agentd/__init__.py")
    return tmp_path


def test_other_distributions_of_the_import_name_are_told_with_what_to_do(site: Path) -> None:
    found: dict[str, Any] = json.loads(doctor(site, "--json"))["installation"]
    assert found["distribution"] == "agentd-sandbox"
    clashes = {each["what"].split()[2]: each for each in found["clashes"]}
    assert set(clashes) == {"agentd", "some-fork"}
    assert "0.13.0" in clashes["agentd"]["what"] and "PyPI" in clashes["agentd"]["what"]
    assert "PyPI" not in clashes["some-fork"]["what"]
    for name, each in clashes.items():
        assert f"{sys.executable} -m pip uninstall -y {name}\n" in each["fix"]
        assert "pip install --force-reinstall --no-deps ." in each["fix"]
    shown = doctor(site)
    assert "the distribution agentd 0.13.0 has the import name agentd, too" in shown
    assert f"    {sys.executable} -m pip uninstall -y some-fork\n" in shown
