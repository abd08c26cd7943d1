"""Threat: a caller starts of an image that nobody may use, by another of its names.

Control: the policy sees the digest of what the name means, and what it saw is what is used.
"""

import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from tests.oci import Images, Layout, busybox, file
from tests.security.daemons import Daemon, Later, bundle, running
from tests.security.test_approval_obligation import asked, decide

from agentd import Sandbox
from agentd.model.errors import AgentdError, Refused

pytestmark = pytest.mark.needs("skopeo", "umoci")
PAGE = Path(__file__).parents[2] / "docs/policy.md"
MOVING = {"image": "moving"}
CAT = {"cmd": ["cat", "/what"]}
APPROVED = """
decision := {"allow": true, "obligations": {"approve": wanted}}

default wanted := false

wanted if {
	input.sandbox.image == "moving"
	input.capability.name == "sandbox.create.v1"
}
"""
NAMES = ("bad", "bad:latest", "alias")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    return made


def pulled(images: Images, text: str, *names: str) -> str:
    """Its digest."""
    layout = Layout(images.folder / f"layout-{text}")
    source = layout.add([busybox(file("what", text.encode()))], {"User": "5"})
    for name in names:
        images.run("pull", source, "--name", name)
    (digest,) = {row["digest"] for row in images.told("ls") if row["name"] in names}
    return str(digest)


def rules(digest: str) -> str:
    """Those of the page, with this digest, without the head that each has."""
    shown = re.findall(r"~~~rego\n(.*?)~~~", PAGE.read_text(), re.DOTALL)
    (found,) = [each for each in shown if "image_digest" in each]
    return re.sub("sha256:[0-9a-f]{64}", digest, found.partition("import rego.v1\n")[2])


def shown(daemon: Daemon, id_: str) -> Any:
    return daemon.ask("GET", f"/v1/sandboxes/{id_}").json


def test_an_image_is_denied_by_each_of_its_names_through_each_door(images: Images) -> None:
    bad, good = pulled(images, "bad", "bad:latest", "alias"), pulled(images, "good", "good")
    with running(policy=rules(bad)) as daemon:
        for name in (*NAMES, bad):
            with pytest.raises(AgentdError, match="this image is not used here") as caught:
                Sandbox.create(url=daemon.url, image=name)
            assert caught.value.code == "policy_denied"
            called = daemon.call("shell.exec.v1", {"command": "id"}, create={"image": name})
            assert "this image is not used here" in called.body.decode()
            ran = daemon.cli("run", "--image", name, "--", "true")
            assert b"this image is not used here" in ran.stderr
        with Sandbox.create(url=daemon.url, image="good") as sandbox:
            assert shown(daemon, sandbox.id)["image_digest"] == good
            result = sandbox.run(["cat", "/what"])
            assert result.stdout == b"good"
            assert (result.enforcement["image"].asked, result.enforcement["image"].detail) == (
                "good",
                good,
            )
            receipt = daemon.ask("GET", f"/v1/receipts/{result.receipt}").json
            assert good.encode() in b64decode(receipt["payload"])


def test_calls_without_a_daemon_are_judged_alike(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = pulled(images, "bad", *NAMES[1:])
    monkeypatch.setenv("AGENTD_POLICY", bundle(tmp_path, rules(bad)))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in (*NAMES, bad):
        argv = [sys.executable, "-m", "agentd", "call", "--embedded", "--image", name]
        ran = subprocess.run(
            [*argv, "shell.exec.v1", "--params", '{"command": "id"}'],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "this image is not used here" in ran.stderr + ran.stdout


def test_a_name_that_moves_is_of_what_was_decided_on(images: Images, tmp_path: Path) -> None:
    """The name comes to mean another between the decision, which takes its time, and the use."""
    first = pulled(images, "first", "moving", "kept")
    with running(policy=APPROVED) as daemon:
        alice, bob = daemon.key("alice"), daemon.key("bob", "approve", "read")
        for left in (True, False):
            later = Later(lambda: daemon.ask("POST", "/v1/sandboxes", MOVING, key=alice))
            waiting = asked(daemon, bob)
            pulled(images, f"second-{left}", "moving")
            if not left:
                images.run("rm", "kept")
            decide(daemon, bob, waiting["id"], allow=True)
            made = later.answer()
            if left:
                assert shown(daemon, made.json["id"])["image_digest"] == first
                ran = daemon.ask("POST", f"/v1/sandboxes/{made.json['id']}/exec", CAT)
                assert ran.json["stdout"] == "first"
                daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}")
                images.run("pull", f"oci:{tmp_path}/layout-first:latest", "--name", "moving")
            else:
                assert (made.status, made.code) == (409, "conflict"), made.body
                assert "is another image now than the one that was decided on" in made.body.decode()


def test_a_snapshot_is_of_the_image_that_it_was_taken_of(images: Images) -> None:
    first = pulled(images, "first", "moving", "kept")
    with Sandbox.create(image="moving") as sandbox:
        snapshot = sandbox.snapshot()
        assert snapshot.spec.image_digest == first
    pulled(images, "second", "moving")
    with snapshot, Sandbox.create(snapshot=snapshot) as again:
        assert again.run(["cat", "/what"]).stdout == b"first"
        assert again.enforcement["image"].detail == first
        images.run("rm", "kept")
        with pytest.raises(Refused, match="is another image now"):
            Sandbox.create(snapshot=snapshot)
    with Sandbox.create(image="moving") as sandbox:
        assert sandbox.run(["cat", "/what"]).stdout == b"second"
