"""Threat: another user of the machine runs what an image has, as whoever it belongs to on disk.

Control: the store is its owner's alone, and so is one that was made with other rights before.
"""

from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser
from tests.oci import Images, Layout, file, layer


@pytest.mark.root
@pytest.mark.needs("skopeo", "umoci", "setpriv")
def test_nobody_else_opens_what_an_image_has(as_user: OrdinaryUser) -> None:
    images = Images(as_user.home)
    store = images.cache / "agentd/oci"
    store.mkdir(parents=True, mode=0o755)
    content = layer(file("su", b"#!/bin/sh\n", 0o4755))
    images.run("pull", Layout(as_user.home / "layout").add([content]), "--name", "x")
    program = images.root("x") / "su"
    assert program.exists() and store.stat().st_mode & 0o777 == 0o700
    opened = as_user.run(["cat", str(program)])
    assert opened.returncode and b"Permission denied" in opened.stderr
    assert as_user.run(["ls", str(Path(as_user.home, "layout"))]).returncode == 0
