"""An image of ours that nobody could read again: it is not made, and nothing stays of it. One that
is damaged hides no other."""

import json

import pytest
from tests.integration.test_image_build import Builds, builds, on_base

from agentd import Sandbox
from agentd.image.model import ImageError
from agentd.image.oci import values

pytestmark = [pytest.mark.needs("skopeo", "umoci"), pytest.mark.timeout(900)]
__all__ = ["builds", "on_base"]  # fixtures


def test_of_more_layers_than_are_taken(on_base: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_LAYERS", 3)
    step = "COPY <<E /{}\n{}\nE\n"
    text = "FROM base\n" + "".join(step.format(n, n) for n in range(2))
    on_base.build(text, name="two")
    done = on_base.build(text + step.format(2, 2), code=None)
    assert "Dockerfile:8: COPY: the image would have 4 layers, over 3" in done.stderr
    assert [row["state"] for row in on_base.told("ls")] == ["ready", "ready"]
    with Sandbox.create(image="two") as box:
        box.run("echo x > /tmp/x", check=True)
        with pytest.raises(ImageError, match="would have 4 layers, over 3"):
            box.commit("more")
    on_base.run("rm", "two")
    assert on_base.told("prune")["freed"] > 0


def test_that_says_more_of_itself_than_is_read(builds: Builds) -> None:
    letters = "x" * 900_000
    ports = "".join(f"EXPOSE 1-65535/{kind}\n" for kind in ("tcp", "udp", "sctp"))
    text = f"FROM scratch\nENV A={letters}\nLABEL b=$A\n{ports}"
    done = builds.build(text, code=None)
    assert "what the image says of itself is longer than 4194304 bytes" in done.stderr
    assert builds.told("ls") == []
    builds.build("FROM scratch\nENV A=b\n")


def test_whose_name_is_damaged_hides_no_other_from_its_digest(on_base: Builds) -> None:
    digest = on_base.told("inspect", "base")["digest"]
    (on_base.cache / "agentd/oci/names/another.json").write_text("{")
    assert on_base.told("inspect", digest)["name"] == "base"
    with Sandbox.create(image=digest) as box:
        box.run("true", check=True)
    on_base.build(f"FROM base@{digest}\nENV A=b\n")


def test_a_root_is_whole_however_many_blocks_its_file_system_counts(on_base: Builds) -> None:
    """Some count others once all is written: of a large file, one for the list of its parts."""
    text = "FROM base\nCOPY <<E /a\nb\nE\n"
    on_base.build(text, name="mine")
    (chain,) = on_base.told("inspect", "mine")["chain"].split()
    about = on_base.cache / "agentd/oci/roots" / chain.partition(":")[2] / "root.json"
    told = json.loads(about.read_text())
    about.write_text(json.dumps(told | {"bytes": told["bytes"] + 4096}))
    on_base.run("verify", "mine")
    with Sandbox.create(image="mine") as box:
        on_base.build(text, name="mine")
        box.run("true", check=True)
