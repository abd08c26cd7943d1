import os
import subprocess
import sys

import pytest

from agentd.model.errors import InvalidInput, OperationFailed
from agentd.policy.example import example
from agentd.policy.learning import record, recorded


def test_what_is_noted_is_read_again(tmp_path):
    path = str(tmp_path / "seen")
    calls = [example("x.v1", {"port": n, "path": "a\nb"}) for n in range(3)]
    for asked in calls:
        record(asked, path)
    assert recorded(path) == calls
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_what_a_policy_is_not_made_of_is_not_noted_however_large(tmp_path):
    path = str(tmp_path / "seen")
    record(example("x.v1", {"path": "a", "content": "private" * (1 << 20)}), path)
    assert recorded(path) == [example("x.v1", {"path": "a"})]
    assert "private" not in (tmp_path / "seen").read_text()


MANY = """
import sys
from agentd.policy.example import example
from agentd.policy.learning import record
for n in range(50):
    record(example("x.v1", {"url": sys.argv[2], "port": n, "path": "a" * 5000}), sys.argv[1])
"""


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = str(tmp_path / "seen")
    words = [sys.executable, "-c", MANY, path]
    children = [subprocess.Popen([*words, str(who)]) for who in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    seen = [(asked.parameters["url"], asked.parameters["port"]) for asked in recorded(path)]
    assert sorted(seen) == [(str(who), n) for who in range(3) for n in range(50)]


def test_bounds_and_errors(tmp_path, monkeypatch):
    path = str(tmp_path / "seen")
    with pytest.raises(InvalidInput, match="too large"):
        record(example("x.v1", {"path": "a" * (1 << 20)}), path)
    assert not os.path.exists(path)
    record(example("x.v1", {}), path)
    monkeypatch.setattr("agentd.policy.learning.MAX_FILE", 500)
    with pytest.raises(InvalidInput, match="is full"):
        record(example("x.v1", {}), path)
    with pytest.raises(OperationFailed, match="cannot note"):
        record(example("x.v1", {}), str(tmp_path / "no" / "seen"))
    os.symlink(path, tmp_path / "link")
    with pytest.raises(OperationFailed):
        record(example("x.v1", {}), str(tmp_path / "link"))
    with pytest.raises(OperationFailed, match="cannot read"):
        recorded(str(tmp_path / "gone"))
    (tmp_path / "odd").write_text("{}\n")
    with pytest.raises(InvalidInput, match="holds no requests"):
        recorded(str(tmp_path / "odd"))


def test_a_file_of_this_machine_is_not_told_to_be_a_sandboxs():
    with pytest.raises(OperationFailed, match="No space left") as failed:
        record(example("x.v1", {}), "/dev/full")
    assert "sandbox" not in failed.value.remediation and "TMPDIR" in failed.value.remediation
