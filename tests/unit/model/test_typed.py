import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agentd.model import typed
from agentd.model.enforcement import Control

SOURCE = Path(__file__).parents[3] / "src/agentd"
# One thread each: the worker of policies, and the command line.
ALONE = ("policy/worker.py", "model/typed.py", "client/cli/")
RACE = """
import sys, threading
import msgspec
from agentd.model import typed

sys.setswitchinterval(1e-7)
fields = [(f"f{i}", "dict[str, int]") for i in range(30)]
inner = [msgspec.defstruct(f"In{n}", fields) for n in range(40)]
kinds = [msgspec.defstruct(f"Out{n}", [("a", kind)]) for n, kind in enumerate(inner)]
value = {"a": {f"f{i}": {"x": 1} for i in range(30)}}
barrier = threading.Barrier(6)

def work():
    for kind in kinds:
        barrier.wait()
        assert typed.convert(value, kind).a.f29 == {"x": 1}

threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_many_threads_may_use_a_new_type_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_decoder_is_kept_and_says_what_does_not_fit() -> None:
    assert typed.decoder(Control) is typed.decoder(Control)
    with pytest.raises(msgspec.ValidationError, match=r"missing required field"):
        typed.convert({}, Control)
    assert typed.convert({"asked": "a", "enforced": True}, Control).asked == "a"


def test_nothing_else_reads_into_types_of_ours() -> None:
    own = re.compile(r"msgspec\.convert\(|json\.Decoder\(|json\.decode\([^\n]*type=(?!dict|str)")
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        if not name.startswith(ALONE):
            assert own.search(path.read_text()) is None, name
