"""What root of a writable root installs and makes: packages, users, files of theirs."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.rootfs import IMAGE

from agentd.client.sandbox import Sandbox

pytestmark = [
    pytest.mark.parametrize("kind", ["linux"], indirect=True),
    pytest.mark.skipif(bool(IMAGE), reason="the root is an image's"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed"),
]
_CONTROL = """\
Package: agentd-hello
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.org>
Description: a package of a test's
"""
_SCRIPT = (
    "#!/bin/sh\nset -e\nchown root: /usr/share/agentd-hello\necho done > /var/lib/agentd-hello\n"
)


@pytest.fixture
def package(folder: Path) -> Path:
    tree = folder / "tree"
    for name, text, mode in (
        ("DEBIAN/control", _CONTROL, 0o644),
        ("DEBIAN/conffiles", "/etc/agentd-hello/conf\n", 0o644),
        ("DEBIAN/postinst", _SCRIPT, 0o755),
        ("etc/agentd-hello/conf", "x\n", 0o644),
        ("usr/bin/agentd-hello", "#!/bin/sh\necho hello\n", 0o755),
        ("usr/share/agentd-hello", "data\n", 0o644),
    ):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    made = folder / "agentd-hello.deb"
    argv = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(made)]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    return made


@pytest.fixture
def own(make: Callable[..., Sandbox], package: Path) -> Sandbox:
    return make(user="root", writable=True, mounts=[f"{package.parent}:/debs"])


def test_dpkg_installs_and_removes_a_package(own: Sandbox) -> None:
    done = own.run("dpkg -i /debs/agentd-hello.deb", timeout=120)
    assert done.exit_code == 0, done.stderr
    assert own.run("agentd-hello; cat /var/lib/agentd-hello").text == "hello\ndone\n"
    listed = own.run("dpkg-query -W -f '${Status}' agentd-hello; dpkg -S /usr/bin/agentd-hello")
    assert listed.text == "install ok installedagentd-hello: /usr/bin/agentd-hello\n"
    assert own.run("dpkg -P agentd-hello", timeout=120).exit_code == 0
    assert own.run("test -e /usr/bin/agentd-hello").exit_code == 1
    assert shutil.which("agentd-hello") is None


def test_apt_installs_from_a_repository_of_files(own: Sandbox, package: Path) -> None:
    data = package.read_bytes()
    entry = f"Filename: ./{package.name}\nSize: {len(data)}\n"
    entry += f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    (package.parent / "Packages").write_text(_CONTROL + entry)
    own.run("echo 'deb [trusted=yes] file:/debs ./' > /etc/apt/sources.list", check=True)
    for command in ("apt-get -q update", "apt-get -q install -y agentd-hello"):
        done = own.run(command, timeout=300)
        assert done.exit_code == 0, done.stderr
    assert own.run("agentd-hello").text == "hello\n"


def test_users_and_groups_are_made_and_become(own: Sandbox) -> None:
    own.run("groupadd crew && useradd -m -G crew joe", check=True)
    if "and no other" in own.enforcement["user_namespace"].detail:
        return  # an ordinary user's sandbox has one id
    assert own.run("stat -c %U:%G /home/joe; su joe -c 'id -un; id -Gn'").text == (
        "joe:joe\njoe\njoe crew\n"
    )
    assert own.run("su nobody -s /bin/sh -c 'id -u; cat /etc/shadow'").text == "65534\n"
    assert own.run("echo joe:secret | chpasswd && grep -c '^joe:\\$' /etc/shadow").text == "1\n"


def test_nobody_who_logs_in_on_the_host_is_known(own: Sandbox) -> None:
    """The system's accounts are, by name and number."""
    users = own.run("cut -d: -f1,3 /etc/passwd").text.split()
    numbers = {int(user.split(":")[1]) for user in users}
    assert {0, 1000, 65534} <= numbers
    assert all(number in (1000, 65534) or number < 1000 for number in numbers)
    assert own.run("cut -d: -f4 /etc/group | sort -u").text.strip() == ""
    assert own.run("cut -d: -f2 /etc/shadow /etc/gshadow | sort -u").text == "*\n"
    assert own.run("stat -c %a /etc/shadow").text == "600\n"
