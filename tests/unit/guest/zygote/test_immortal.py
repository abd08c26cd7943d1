from collections.abc import Callable

import pytest

from agentd.guest.zygote import immortal

# Touches every page with a small object, in a forked copy, and tells how much memory that took.
TOUCH = """
import gc, os, sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import immortal
data = [(str(n), float(n)) for n in range(60_000)]
made = immortal.immortalise() if sys.argv[2] == "immortal" else 0
gc.freeze()
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
if os.fork() == 0:
    before = private()
    total = 0
    for name, number in data:
        total += len(name)
    print(made, private() - before, total, flush=True)
    os._exit(0)
os.wait()
"""
AFTER = """
import gc, sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import immortal
class Box:
    pass
box, names, table = Box(), ["a"], {"k": object()}
assert immortal.immortalise() > 1000
counts = [sys.getrefcount(thing) for thing in (box, names, table, Box)]
more = [box, names, table, Box] * 100
assert [sys.getrefcount(thing) for thing in (box, names, table, Box)] == counts
del more
box.late, table["late"] = [1], {2: 3}
names += ["b"] * 1000
del names[:500], table["k"]
gc.collect()
for _ in range(10_000):
    Box().late = [box, names]
assert (box.late, len(names), table) == ([1], 501, {"late": {2: 3}})
exec("def late(x): return x + 1")
assert late(41) == 42
print("sound")
"""


@pytest.mark.skipif(not immortal.supported(), reason="this interpreter counts otherwise")
def test_a_copy_that_only_looks_writes_to_no_page(run: Callable[..., str]) -> None:
    made, immortal_kb, total = map(int, run(TOUCH, "immortal").split())
    none, mortal_kb, same = map(int, run(TOUCH, "mortal").split())
    assert total == same
    assert none == 0
    assert made > 120_000
    assert mortal_kb > 4000
    assert immortal_kb < mortal_kb / 8


@pytest.mark.skipif(not immortal.supported(), reason="this interpreter counts otherwise")
def test_immortal_objects_change_and_the_program_goes_on(run: Callable[..., str]) -> None:
    assert run(AFTER) == "sound\n"


def test_an_interpreter_that_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(immortal.sys, "version_info", (3, 11, 7))
    assert not immortal.supported()
    assert immortal.immortalise() == 0
