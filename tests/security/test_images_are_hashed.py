"""Threat: what is on disk, or what fetched it, gives an image other bytes than were asked for.

Control: each blob is hashed before it counts, and what is read of one is hashed as it is used.
"""

import contextlib
import io
import os
from pathlib import Path

import pytest
from tests.oci import Images, Layout, file, layer

from agentd import Refused, Sandbox, SandboxError
from agentd.client.cli.main import main

pytestmark = pytest.mark.needs("skopeo", "umoci")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    return made


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Of an image whose layer is its largest blob."""
    content = layer(file("random", os.urandom(1 << 16)))
    return Layout(tmp_path / "layout").add([content], {"User": "1234"})


def change(blob: Path) -> None:
    """One byte of it, so that it is as long as before."""
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)


def test_a_layer_in_the_store_that_was_changed_is_found(images: Images, source: str) -> None:
    images.run("pull", source, "--name", "x")
    (row,) = images.told("inspect", "x")["layers"]
    change(images.cache / "agentd/oci/blobs/sha256" / row["digest"].removeprefix("sha256:"))
    (found,) = images.told("verify", code=1)
    assert f"the blob {row['digest']} is damaged" in found["state"]


def test_a_configuration_that_was_changed_is_not_used(images: Images, source: str) -> None:
    """Else whoever changed it would say as whom the next sandbox runs."""
    images.run("pull", source, "--name", "x")
    blobs = (images.cache / "agentd/oci/blobs/sha256").iterdir()
    (config,) = (path for path in blobs if b'"User"' in path.read_bytes())
    config.chmod(0o644)
    config.write_bytes(config.read_bytes().replace(b'"1234"', b'"root"'))
    with pytest.raises(SandboxError, match="the image 'x' is damaged"):
        Sandbox.create(image="x")


class Changing(io.StringIO):
    """Changes the largest blob that was fetched as soon as it is to be verified."""

    def __init__(self, work: Path) -> None:
        super().__init__()
        self._work = work

    def write(self, text: str) -> int:
        if "verifying" in text:
            fetched = self._work.glob("*/files/fetched/blobs/sha256/*")
            change(max(fetched, key=lambda path: path.stat().st_size))
        return super().write(text)


def test_what_was_fetched_is_hashed_before_it_counts(images: Images, source: str) -> None:
    """Whatever fetched it says that it is whole; but that reads what others have written."""
    errors = Changing(images.cache / "agentd/oci/work")
    with contextlib.redirect_stderr(errors):
        assert main(["image", "pull", source, "--name", "x"]) != 0
    assert "is damaged" in errors.getvalue()
    assert images.told("ls") == [] and images.left() == []


def test_changes_of_one_image_are_put_on_no_other(
    images: Images, source: str, tmp_path: Path
) -> None:
    """Whatever the snapshot's manifest says, which its digests do not prove."""
    images.run("pull", source, "--name", "x")
    kept = tmp_path / "kept"
    with Sandbox.create(image="x") as sandbox, sandbox.snapshot(kept):
        other = Layout(tmp_path / "other").add([layer(file("other"))], {"User": "1234"})
        images.run("pull", other, "--name", "x")
        (row,) = images.told("ls")
        manifest = kept / "manifest.json"
        told = manifest.read_text()
        before = sandbox.enforcement["image"].detail
        assert before in told and before != row["digest"]
        manifest.write_text(told.replace(before, row["digest"]))
        with pytest.raises(Refused, match="is another image now than the one that the snapshot"):
            Sandbox.create(snapshot=kept)
