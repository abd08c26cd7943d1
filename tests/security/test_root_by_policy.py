"""Threat: a caller has a sandbox in which its programs are root, where nobody may.

Control: the policy sees who commands are inside, and whether the root can be written to.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file, folder
from tests.security.daemons import running

from agentd import Sandbox
from agentd.model.errors import AgentdError

PAGE = Path(__file__).parents[2] / "docs/root.md"


def test_a_policy_denies_root_and_a_root_to_write_to() -> None:
    """By the words of the page."""
    (rules,) = re.findall(r"```rego\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with running(policy=rules) as daemon:
        for options in ({"user": "root"}, {"user": 0}, {"user": "00"}, {"writable": True}):
            with pytest.raises(AgentdError, match="nobody is root here") as caught:
                Sandbox.create(url=daemon.url, **options)  # type: ignore[arg-type]
            assert caught.value.code == "policy_denied"
        with Sandbox.create(url=daemon.url) as sandbox:
            assert sandbox.run("id -u").text == "1000\n"


@pytest.mark.needs("skopeo", "umoci")
def test_root_that_an_image_asks_for_is_denied_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says as whom, the image does: root where it says nothing, or by another name."""
    images, layout = Images(tmp_path), Layout(tmp_path / "layout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.cache))
    passwd = file("etc/passwd", b"toor:x:0:0::/:/bin/sh\nnode:x:77:77::/:/bin/sh\n")
    base = busybox(folder("etc"), passwd)
    for name, user in (("silent", ""), ("zero", "00:0"), ("toor", "toor"), ("node", "node")):
        images.run("pull", layout.add([base], {"User": user}, tag=name), "--name", name)
    (rules,) = re.findall(r"```rego\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with running(policy=rules) as daemon:
        for name in ("silent", "zero", "toor"):
            with pytest.raises(AgentdError, match="nobody is root here") as caught:
                Sandbox.create(url=daemon.url, image=name)
            assert caught.value.code == "policy_denied"
            made = daemon.call("shell.exec.v1", {"command": "id"}, create={"image": name})
            assert "nobody is root here" in made.body.decode()
        options: dict[str, Any]
        for options, uid in (({"image": "node"}, 77), ({"image": "silent", "user": 5}, 5)):
            with Sandbox.create(url=daemon.url, **options) as sandbox:
                assert sandbox.run(["id", "-u"]).text == f"{uid}\n"
        with Sandbox.create(url=daemon.url, image="node") as sandbox:
            kept = sandbox.snapshot()
        manifest = daemon.state / "snapshots" / kept.id / "snapshot/manifest.json"
        older = json.loads(manifest.read_text())
        assert older["spec"]["user"] == "77"
        manifest.write_text(json.dumps(older | {"spec": older["spec"] | {"user": None}}))
        with Sandbox.create(url=daemon.url, snapshot=kept) as sandbox:
            assert sandbox.run(["id", "-u"]).text == "77\n"
