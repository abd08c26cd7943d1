"""Blocks of ids: whose they are, when they come back, and what is said when there is none."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import ids

from agentd.model.errors import InvalidInput, SandboxError
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.identity import SIZE, START, Block, Range

OWN = ids.own(0, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(identity, "FOLDER", str(tmp_path / "ids"))
    monkeypatch.setattr(identity, "_range", OWN)
    monkeypatch.setattr(identity, "_swept", False)
    yield tmp_path / "ids"


def take() -> Block:
    block = identity.take()
    assert block is not None
    return block


@pytest.mark.root
def test_every_block_is_given_once_and_then_the_key_is_named() -> None:
    blocks = [take() for _ in range(OWN.blocks)]
    assert sorted(block.id for block in blocks) == list(OWN.usable())
    with pytest.raises(SandboxError, match="no block of user ids is free: all 8") as error:
        take()
    assert "ids.blocks" in error.value.remediation
    blocks[3].release()
    again = take()
    assert again.id == blocks[3].id
    for block in (*blocks, again):
        block.release()


@pytest.mark.root
def test_what_was_left_behind_comes_back_once_no_process_of_it_is_left(folder: Path) -> None:
    blocks = [take() for _ in range(OWN.blocks)]
    lives = blocks[0]
    code = f"import os; os.setuid({lives.id + 9}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for block in blocks:
            block.release(ended=False)
        again = [take() for _ in range(OWN.blocks - 1)]
        assert lives.id not in {block.id for block in again}
        with pytest.raises(SandboxError):
            take()
        process.kill()
        process.wait()
    last = take()
    assert last.id == lives.id
    for block in (*again, last):
        block.release()
    assert not os.listdir(folder)


@pytest.mark.root
def test_what_was_left_behind_is_freed_at_once_where_that_is_asked_for(folder: Path) -> None:
    kept, left = take(), take()
    left.release(ended=False)
    assert identity.in_use(OWN) == 2
    identity.reclaim()
    assert os.listdir(folder) == [str(kept.id)]
    kept.release()
    identity.reclaim()
    assert identity.in_use(OWN) == 0


@pytest.mark.root
def test_a_lock_that_somebody_has_keeps_the_block() -> None:
    block = take()
    held = os.dup(block.fd)  # as a sandbox's first process has it
    try:
        block.release(ended=False)
        others = [take() for _ in range(OWN.blocks - 1)]
        with pytest.raises(SandboxError):
            take()
    finally:
        os.close(held)
    others.append(take())
    for other in others:
        other.release()


@pytest.mark.root
def test_a_folder_that_is_noted_goes_before_the_block_comes_back(tmp_path: Path) -> None:
    block = take()
    scratch = tmp_path / "agentd-scratch"
    scratch.mkdir()
    (scratch / "file").write_text("left")
    block.note(str(scratch))
    block.release(ended=False)
    for other in [take() for _ in range(OWN.blocks)]:
        other.release()
    assert not scratch.exists()


@pytest.mark.root
def test_a_folder_that_cannot_be_removed_keeps_its_block(tmp_path: Path) -> None:
    block = take()
    scratch = tmp_path / "agentd-scratch"
    scratch.mkdir()
    block.note(str(scratch))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", scratch], check=True)
    try:
        block.release(ended=False)
        others = [take() for _ in range(OWN.blocks - 1)]
        assert block.id not in {other.id for other in others}
        with pytest.raises(SandboxError, match="no block of user ids is free"):
            take()
    finally:
        subprocess.run(["umount", scratch], check=True)
    others.append(take())
    assert others[-1].id == block.id
    assert not scratch.exists()
    for other in others:
        other.release()


@pytest.mark.root
def test_a_folder_that_others_may_write_is_not_trusted(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SandboxError, match="no block of user ids can be had") as error:
        take()
    assert "root alone" in error.value.cause


@pytest.mark.parametrize(
    ("found", "key", "words"),
    [
        (Range(1000, 2048), "start", "the machine's own users"),
        (Range(START + 1, 2048), "start", "overlap"),
        (Range(START, 3), "blocks", "too few"),
        (Range(START, 1 << 16), "blocks", "above the kernel's last id"),
    ],
)
def test_a_range_that_cannot_be_is_refused_by_key(found: Range, key: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=f"ids.{key}: .*{words}") as error:
        identity.configure(found)
    assert error.value.remediation.startswith("use ")


def test_what_the_version_before_used_is_never_given() -> None:
    assert Range().usable()[0] == START + 2 * SIZE
    assert len(Range().usable()) > 1000


def test_the_environment_says_it_where_no_configuration_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity, "_range", None)
    monkeypatch.setenv("AGENTD_IDS__BLOCKS", "32")
    assert identity.configured() == Range(START, 32)
    monkeypatch.setattr(identity, "_range", None)
    monkeypatch.setenv("AGENTD_IDS__BLOCKS", "many")
    with pytest.raises(InvalidInput, match="AGENTD_IDS__BLOCKS='many'"):
        identity.configured()
