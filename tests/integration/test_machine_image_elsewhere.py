"""What machine images are made of, where this machine's apt knows nothing of Debian."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from agentd.client.cli.main import main
from agentd.image import apt
from agentd.image.debian import Debian
from agentd.model.errors import Unavailable

pytestmark = [pytest.mark.needs("apt-get", "dpkg-deb"), pytest.mark.timeout(900)]
_NOTHING = """\
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::State::status "/dev/null";
Dir::State::lists "{}";
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that says it is another distribution, and whose own apt has no source."""
    (tmp_path / "own/partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(_NOTHING.format(tmp_path / "own"))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AGENTD_DEBIAN_MIRROR", raising=False)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "ubuntu"})
    return tmp_path


def test_the_packages_are_those_of_debians_archive(machine: Path) -> None:
    """By an apt whose lists are in the cache; the keys decide what is believed."""
    own = ["apt-cache", "show", "linux-image-cloud-amd64"]
    assert subprocess.run(own, capture_output=True, check=False).returncode != 0
    keyring = next((path for path in apt._KEYRINGS if Path(path).exists()), None)
    if keyring is None:
        pytest.skip("debian-archive-keyring is not installed")
    try:
        found = Debian("debian", str(machine / "packages")).packages()
    except Unavailable as error:
        if "apt-get update failed" in str(error):
            pytest.skip(f"Debian's archive cannot be reached: {error.cause}")
        raise
    assert {"busybox-static", "python3.13-minimal", "bash"} <= found.keys()
    assert any(name.startswith("linux-image-6.12.") for name in found)
    lists = list((machine / "cache/agentd/images/.apt/state/lists").glob("*_InRelease"))
    assert len(lists) == 3
    updated = machine / "cache/agentd/images/.apt/updated"
    before = updated.stat().st_mtime_ns
    assert Debian("debian", str(machine / "packages")).packages() == found
    assert updated.stat().st_mtime_ns == before  # once a day
    assert list((machine / "own").iterdir()) == [machine / "own/partial"]
    shutil.rmtree(machine / "cache/agentd/images/.apt")


def test_an_archive_that_others_have_signed_or_none_is_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = machine / "mirror"
    (mirror / "dists/trixie/main/binary-amd64").mkdir(parents=True)
    (mirror / "dists/trixie/InRelease").write_text("Suite: trixie\n")
    monkeypatch.setenv("AGENTD_DEBIAN_MIRROR", f"file:{mirror}")
    if not any(Path(path).exists() for path in apt._KEYRINGS):
        pytest.skip("debian-archive-keyring is not installed")
    assert main(["image", "build"]) == 125
    said = capsys.readouterr().err
    assert "apt-get update failed" in said and "AGENTD_DEBIAN_MIRROR" in said
