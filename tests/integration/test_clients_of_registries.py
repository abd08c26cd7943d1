"""Registries as they are: by a preset, and with each request judged, for programs that are told of
no proxy and of no certificate. What is not reached from here is skipped by name."""

import os
import socket
from typing import Any

import pytest
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
]
_KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OTHER = "https://example.com/"
PIP = "pip download -q --disable-pip-version-check --no-cache-dir --no-deps -d /tmp/pip six"
UV = "uv pip install -q --no-cache --no-config --python python3 --target /tmp/uv six"
NPM = 'cd "$(mktemp -d)" && npm pack --silent --cache . left-pad'
APT = f"""{APT_IN_A_FOLDER}
echo "deb [signed-by={_KEY}] SCHEME://deb.debian.org/debian stable main" >etc/apt/sources.list
apt update; apt download hello; ls hello_*.deb
"""
CURL = "curl -sSf -m 120 -o /dev/null"


def _sandbox(host: str, port: int, wall: str, net: list[str], **wanted: Any) -> Sandbox:
    try:
        socket.create_connection((host, port), 20).close()
    except OSError as error:
        pytest.skip(f"{host} is not reached from here: {error}")
    # What this machine's programs are told of who signs for registries; where requests are judged
    # nobody has to say anything.
    told = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    env = {} if any(rule.startswith("read") for rule in net) else told
    return Sandbox.create(backend=wall, net=net, env=env, embedded=True, **wanted)


def _check(sandbox: Sandbox, script: str) -> None:
    done = sandbox.run(["sh", "-ec", script], timeout=400)
    assert done.exit_code == 0, (script, done.stdout, done.stderr)
    done = sandbox.run(["curl", "-sS", "-m", "120", _OTHER], timeout=200)
    assert b"Could not resolve host" in done.stderr, "it reaches what no rule has"


@pytest.mark.needs("pip", "curl")
@pytest.mark.parametrize("wall", _WALLS)
@pytest.mark.parametrize("net", [["pypi"], ["read pypi.org", "read files.pythonhosted.org"]])
def test_pip_and_uv_have_a_package_of_pypi(wall: str, net: list[str]) -> None:
    with _sandbox("pypi.org", 443, wall, net, packages=["uv"]) as sandbox:
        _check(sandbox, f"{PIP} && {UV} && ls /tmp/pip/six-*.whl /tmp/uv/six.py")


@pytest.mark.needs("npm", "curl")
@pytest.mark.parametrize("wall", _WALLS)
@pytest.mark.parametrize("net", [["npm"], ["read registry.npmjs.org"]])
def test_npm_has_a_package_of_its_registry(wall: str, net: list[str]) -> None:
    with _sandbox("registry.npmjs.org", 443, wall, net) as sandbox:
        _check(sandbox, f"{NPM} && ls left-pad-*.tgz")


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
def test_apt_has_a_package_of_debian(wall: str, scheme: str, net: list[str]) -> None:
    if not os.path.exists(_KEY):
        pytest.skip(f"there is no {_KEY}: install debian-archive-keyring")
    port = 443 if scheme == "https" else 80
    with _sandbox("deb.debian.org", port, wall, net) as box:
        _check(box, APT.replace("SCHEME", scheme))


@pytest.mark.needs("curl")
@pytest.mark.parametrize("wall", _WALLS)
def test_what_is_judged_of_a_registry_cannot_be_published_to(wall: str) -> None:
    with _sandbox("pypi.org", 443, wall, ["read pypi.org"]) as sandbox:
        done = sandbox.run(["sh", "-c", f"{CURL} -X POST https://pypi.org/legacy/"])
        assert b"403" in done.stderr
        (row,) = [r for r in sandbox.network.connections().connections if r.method]
        assert (row.allowed, row.status, row.path) == (False, 403, "/legacy/")
