"""Threat: a registry has whoever pulls ask a service of this machine, and is told what that says.

Control: skopeo has a network of its own, and agentd dials for it: what is public, who was named.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.leading import SECRET, own_address, registry, service
from tests.oci import Images, Layout, file, layer

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Images(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    made = Layout(tmp_path / "layout")
    made.add([layer(file("a", b"a"))])
    return made.path


@pytest.fixture
def secret(layout: Path) -> Iterator[Any]:
    """A service of this machine's, wherever of it one asks."""
    with service(layout, "0.0.0.0") as server:  # noqa: S104
        yield server


def own() -> str:
    return own_address() or pytest.skip("this machine has no address but its loopback's")


# The loopback by its addresses and names, what means this host, and what this machine is to others.
_PLACES = (
    *("127.0.0.1", "127.8.7.6", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"),  # noqa: S104
    "OWN",
)


@pytest.mark.parametrize("host", _PLACES)
def test_no_token_is_fetched_of_this_machine(
    images: Images, layout: Path, secret: Any, host: str
) -> None:
    place = f"{own() if host == 'OWN' else host}:{secret.port}"
    with registry(layout, realm=f"http://{place}/token") as hostile:
        pull = ("pull", f"docker://127.0.0.1:{hostile.port}/a:1", "--insecure", "--name", "a")
        done = images.run(*pull, code=None)
    told = [authorization for _, authorization in hostile.asked]
    assert secret.asked == [] and not any(SECRET in each for each in told), (secret.asked, told)
    assert done.returncode == 125 and "which is not asked" in done.stderr, done.stderr
    assert images.left() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "OWN"])
def test_no_blob_is_fetched_of_this_machine(
    images: Images, layout: Path, secret: Any, host: str
) -> None:
    place = f"{own() if host == 'OWN' else host}:{secret.port}"
    with registry(layout, blobs=f"http://{place}") as hostile:
        pull = ("pull", f"docker://127.0.0.1:{hostile.port}/a:1", "--insecure", "--name", "a")
        done = images.run(*pull, code=None)
    assert secret.asked == [], secret.asked
    assert done.returncode == 125 and "which is not asked" in done.stderr, done.stderr


def test_nothing_is_sent_to_a_metadata_service(images: Images, layout: Path) -> None:
    with registry(layout, realm="http://169.254.77.77/credentials") as hostile:
        pull = ("pull", f"docker://127.0.0.1:{hostile.port}/a:1", "--insecure", "--name", "a")
        said = images.run(*pull, code=125).stderr
    assert "the registry leads to 169.254.77.77:80, which is not asked" in said, said
    assert "is link-local, as metadata services are" in said and "nobody is let there" in said


def test_nothing_is_fetched_of_this_machine_by_a_push(
    images: Images, layout: Path, secret: Any
) -> None:
    images.run("pull", f"oci:{layout}", "--name", "mine")
    realm = f"http://127.0.0.1:{secret.port}/token"
    with registry(layout, realm=realm) as hostile:
        push = ("push", "mine", f"docker://127.0.0.1:{hostile.port}/a:1", "--insecure")
        said = images.run(*push, code=125).stderr
    assert secret.asked == [], secret.asked
    assert "which is not asked" in said and "agentd image push --net" in said, said


def test_a_build_is_led_nowhere_either(images: Images, layout: Path, secret: Any) -> None:
    context = images.folder / "context"
    context.mkdir()
    with registry(layout, realm=f"http://127.0.0.1:{secret.port}/token") as hostile:
        (context / "Dockerfile").write_text(f"FROM 127.0.0.1:{hostile.port}/a:1\n")
        said = images.run("build", "-t", "b", "--insecure", str(context), code=None).stderr
    assert secret.asked == [], secret.asked
    assert "which is not asked" in said, said


@pytest.mark.needs("unshare")
def test_where_no_network_of_its_own_can_be_had_nobody_is_asked(
    images: Images, layout: Path
) -> None:
    """And the machine's network is not what it gets instead."""
    none = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    with registry(layout) as hostile:
        pull = ("image", "pull", f"docker://127.0.0.1:{hostile.port}/a:1", "--insecure")
        done = subprocess.run(
            ["unshare", "-Ur", "sh", "-c", none, "sh", sys.executable, "-m", "agentd", *pull],
            env=images.env,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 125 and hostile.asked == [], done
    assert "skopeo cannot be shut in here, and does not run otherwise" in done.stderr
