"""An image whose libc is not the host's: its programs are started by their own loader, and the
agent by its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.rootfs import pulled

from agentd import Sandbox

pytestmark = pytest.mark.needs("skopeo", "umoci", "musl-gcc")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield pulled("musl")


@pytest.mark.parametrize(
    "backend",
    [
        "linux",
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
    ],
)
def test_its_programs_have_their_own_libc(image: str, backend: str, tmp_path: Path) -> None:
    """A name of its passwd, an address of its hosts, a thread, by musl's functions."""
    tmp_path.joinpath("lent").write_text("lent")
    mounts = [f"{tmp_path}:/lent"]
    with Sandbox.create(backend=backend, image=image, mounts=mounts, embedded=True) as box:
        assert box.run(["libc"], check=True).text == "sandbox 127.0.0.1 thread\n"
        mapped = box.run(["cat", "/proc/self/maps"], check=True).text
        assert "/ld-musl-" in mapped
        assert "libc.so.6" not in mapped and "agentd" not in mapped
        box.files.write("/workspace/a", b"written")
        assert box.run(["cat", "/workspace/a", "/lent/lent"]).text == "writtenlent"
        # Nothing of the agent's interpreter is told to a command.
        told = {line.partition("=")[0] for line in box.run("env", check=True).text.splitlines()}
        assert not {name for name in told if name.startswith(("LD_", "PYTHON"))}
        assert box.run("sleep 60 & kill $!; wait $!").exit_code == 143
