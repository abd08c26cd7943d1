"""Registries as they are: by a preset, and with each request judged, for programs that are told of
no proxy and of no certificate. What is not reached from here is skipped by name."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import oci, qemu, rootfs
from tests.integration.clients.rows import APT_IN_A_FOLDER

from agentd import Sandbox
from agentd.sandbox.backends.certificates import VARIABLES

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("AGENTD_TEST_CLIENTS") != "1", reason="make test-clients asks registries"
    ),
    pytest.mark.timeout(900),
]
_WALLS = [
    "linux",
    pytest.param("oci", marks=pytest.mark.needs("runc")),
    pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
    qemu.WALL,
]
#: What this machine's programs are told of who signs for registries.
_TOLD = {name: os.environ[name] for name in VARIABLES if name in os.environ}
_KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_OTHER = "https://example.com/"
PIP = "pip download -q --disable-pip-version-check --no-cache-dir --no-deps -d /tmp/pip six"
UV = "uv pip install -q --no-cache --no-config --python python3 --target /tmp/uv six"
NPM = 'cd "$(mktemp -d)" && npm pack --silent --cache . left-pad'
APT = f"""{APT_IN_A_FOLDER}
echo "deb [signed-by={_KEY}] SCHEME://deb.debian.org/debian stable main" >etc/apt/sources.list
apt update; apt download hello; ls hello_*.deb
"""
CURL = "curl -sSf -m 120 -o /dev/null"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """Of machines, with the files that ``_TOLD`` names."""
    files = {path for path in (*_TOLD.values(), _BUNDLE) if os.path.isfile(path)}
    folders = {str(each)[1:] for path in files for each in Path(path).parents[:-1]}
    entries = [oci.folder(each) for each in sorted(folders)]
    entries += [oci.file(path[1:], Path(path).read_bytes()) for path in sorted(files)]
    with rootfs.stored("clients-of-registries", *entries) as name:
        yield name


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, wall: str) -> Callable[..., Sandbox]:
    def make(host: str, port: int, net: list[str], **wanted: Any) -> Sandbox:
        try:
            socket.create_connection((host, port), 20).close()
        except OSError as error:
            pytest.skip(f"{host} is not reached from here: {error}")
        if wall == "qemu":
            wanted |= {"image": request.getfixturevalue("image"), "memory": "512M"}
        # Where requests are judged nobody has to say anything.
        env = {} if any(rule.startswith("read") for rule in net) else _TOLD
        return Sandbox.create(backend=wall, net=net, env=env, embedded=True, **wanted)

    return make


def _check(box: Sandbox, script: str) -> None:
    done = box.run(["sh", "-ec", script], timeout=400)
    assert done.exit_code == 0, (script, done.stdout, done.stderr)
    done = box.run(["curl", "-sS", "-m", "120", _OTHER], timeout=200)
    assert b"Could not resolve host" in done.stderr, "it reaches what no rule has"


@pytest.mark.needs("pip", "curl")
@pytest.mark.parametrize("wall", _WALLS)
@pytest.mark.parametrize("net", [["pypi"], ["read pypi.org", "read files.pythonhosted.org"]])
def test_pip_and_uv_have_a_package_of_pypi(sandbox: Callable[..., Sandbox], net: list[str]) -> None:
    with sandbox("pypi.org", 443, net, packages=["uv"]) as box:
        _check(box, f"{PIP} && {UV} && ls /tmp/pip/six-*.whl /tmp/uv/six.py")


@pytest.mark.needs("npm", "curl")
@pytest.mark.parametrize("wall", _WALLS)
@pytest.mark.parametrize("net", [["npm"], ["read registry.npmjs.org"]])
def test_npm_has_a_package_of_its_registry(sandbox: Callable[..., Sandbox], net: list[str]) -> None:
    with sandbox("registry.npmjs.org", 443, net) as box:
        _check(box, f"{NPM} && ls left-pad-*.tgz")


@pytest.mark.needs("apt-get", "curl")
@pytest.mark.parametrize(
    ("scheme", "net"),
    [
        ("http", ["debian"]),
        ("http", ["read deb.debian.org"]),
        ("https", ["debian"]),
        ("https", ["read deb.debian.org"]),
    ],
)
@pytest.mark.parametrize("wall", _WALLS)
def test_apt_has_a_package_of_debian(
    sandbox: Callable[..., Sandbox], scheme: str, net: list[str]
) -> None:
    if not os.path.exists(_KEY):
        pytest.skip(f"there is no {_KEY}: install debian-archive-keyring")
    port = 443 if scheme == "https" else 80
    with sandbox("deb.debian.org", port, net) as box:
        _check(box, APT.replace("SCHEME", scheme))


@pytest.mark.needs("curl")
@pytest.mark.parametrize("wall", _WALLS)
def test_what_is_judged_of_a_registry_cannot_be_published_to(
    sandbox: Callable[..., Sandbox],
) -> None:
    with sandbox("pypi.org", 443, ["read pypi.org"]) as box:
        done = box.run(["sh", "-c", f"{CURL} -X POST https://pypi.org/legacy/"])
        assert b"403" in done.stderr
        (row,) = [r for r in box.network.connections().connections if r.method]
        assert (row.allowed, row.status, row.path) == (False, 403, "/legacy/")
