"""Images that are made, replaced and removed, and looked at by others meanwhile: by the command
line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.oci import Images

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(300)]
_AGAIN = """
import json, sys
from agentd.client.cli.main import main
for number in range(int(sys.argv[1])):
    for words in json.loads(sys.argv[2]):
        assert main(["image", *words]) == 0, words
"""


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Beside it two folders that images are built of, and what is built of them differs."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text(f"FROM scratch\nCOPY Dockerfile /{name}\n")
    return Images(tmp_path)


@contextmanager
def meanwhile(images: Images, times: int, *words: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Another process that does this over and over, and fails where any of it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", _AGAIN, str(times), json.dumps(words)],
        env=images.env,
        cwd=images.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_who_cleans_up_is_in_nobodys_way(images: Images) -> None:
    """Whose folder goes just now is no failure of who removes what the killed have left."""
    with meanwhile(images, 60, ["build", "-t", "mine", "one"]) as process:
        while process.poll() is None:
            images.run("prune")
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.returncode == 0, said[-1000:]
    assert images.left() == []
    assert images.told("verify") == [{"name": "mine", "state": "ready"}]
