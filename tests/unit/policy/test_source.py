import os
import shutil
from pathlib import Path

import pytest

from agentd.policy import source
from agentd.policy.errors import BundleError

DECISION = 'decision := {"allow": true}'


def test_a_bundle_is_its_files(bundle):
    found = source.read(
        bundle(DECISION, {"a": 1}, files={"x_test.rego": "package agentd.x_test\n"})
    )
    assert list(found.modules) == ["base.rego"]
    assert list(found.tests) == ["x_test.rego"]
    assert found.data == b'{"a":1}'
    assert found.digest.startswith("sha256:") and len(found.digest) == 7 + 64


def test_the_digest_is_of_names_and_contents_alone(bundle, tmp_path):
    first = bundle(DECISION, {"a": 1})
    digest = source.read(first).digest
    shutil.copytree(first, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "base.rego", (1, 1))
    assert source.read(tmp_path / "copy").digest == digest
    (tmp_path / "copy" / "data.json").write_text('{"a":2}')
    assert source.read(tmp_path / "copy").digest != digest


def test_a_digest_is_the_same_on_every_machine(bundle):
    """Written down once: should it change, pins of users break."""
    manifest = '{"name": "a", "modules": ["base.rego"]}'
    path = bundle(DECISION, files={"manifest.json": manifest})
    assert source.read(path).digest == (
        "sha256:87baffe7208e13eafc4967d1736d9750cbe9985b978172aec7ea9846fd8278fe"
    )


def test_modules_that_agentd_ships_are_part_of_the_digest(bundle, monkeypatch, tmp_path):
    path = bundle(DECISION, modules=["base.rego", "agentd:shell.rego"])
    digest = source.read(path).digest
    shutil.copytree(source.shipped("common"), tmp_path / "common")
    with open(tmp_path / "common" / "shell.rego", "a") as file:
        file.write("# more\n")
    monkeypatch.setattr(source, "shipped", lambda name: tmp_path / name)
    assert source.read(path).digest != digest


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"modules": ["base.rego", "base.rego"]}, "base.rego is named twice"),
        ({"modules": ["base.rego", "gone.rego"]}, "it names gone.rego, which is not there"),
        ({"modules": ["base.rego", "agentd:gone.rego"]}, "agentd:gone.rego, which is not there"),
        ({"modules": ["base.rego", "agentd:../source.py"]}, "which is not there"),
        ({"modules": ["base.rego", "../base.rego"]}, "which is not there"),
        ({"modules": []}, "base.rego: manifest.json does not name it"),
        ({"data": ["data.json"]}, "it names data.json"),
        ({"more": 1}, "unknown field"),
        ({"files": {"manifest.json": "{"}}, "manifest.json"),
        ({"files": {"data.json": "[]"}, "data": ["data.json"]}, "data.json: Expected `object`"),
        ({"files": {"data.json": '{"agentd": 1}'}, "data": ["data.json"]}, "the policy's own"),
    ],
)
def test_what_is_wrong_is_said(bundle, change, problem):
    with pytest.raises(BundleError, match=problem):
        source.read(bundle(DECISION, **change))


def test_bounds(bundle, monkeypatch):
    with pytest.raises(BundleError, match="more than 256 KiB"):
        source.read(bundle("# " + "a" * source.MAX_FILE))
    monkeypatch.setattr(source, "MAX_TOTAL", 100)
    with pytest.raises(BundleError, match="more than 0 MiB"):
        source.read(bundle("# " + "a" * 200))
    monkeypatch.setattr(source, "MAX_FILES", 1)
    with pytest.raises(BundleError, match="more than 1 files"):
        source.read(bundle(DECISION))


def test_links_lead_nowhere_else(bundle, tmp_path):
    path = bundle(DECISION)
    os.rename(f"{path}/base.rego", f"{path}/.real.rego")
    os.symlink(".real.rego", f"{path}/base.rego")
    source.read(path)
    os.unlink(f"{path}/base.rego")
    (tmp_path / "out.rego").write_text("package agentd\n")
    os.symlink(tmp_path / "out.rego", f"{path}/base.rego")
    with pytest.raises(BundleError, match="a link out of the folder"):
        source.read(path)


def test_what_anybody_may_write_is_no_policy(bundle):
    path = bundle(DECISION)
    Path(path, "base.rego").chmod(0o666)
    with pytest.raises(BundleError, match="anybody may write it"):
        source.read(path)


def test_a_pipe_is_not_waited_for(bundle):
    path = bundle(DECISION)
    os.unlink(f"{path}/base.rego")
    os.mkfifo(f"{path}/base.rego", 0o600)
    with pytest.raises(BundleError, match="not a regular file"):
        source.read(path)


def test_there_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="No such file"):
        source.read(tmp_path / "gone")
    with pytest.raises(BundleError, match=r"manifest\.json: there is none"):
        source.read(tmp_path)
