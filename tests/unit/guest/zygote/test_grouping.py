from collections.abc import Callable

import pytest

from agentd.guest.zygote import grouping

# Functions far apart, called in a forked copy, which tells how much memory that took.
APART = """
import gc, os, sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import grouping, immortal
made, between = [], []
for n in range(200):
    names = {}
    exec(f"def call(x):\\n if x > {n}: return x + {n}\\n return [x for x in (x, {n})][0]", names)
    made.append(names["call"])
    between.append([bytes(n) for n in range(180, 1000, 8) for _ in range(4)])
before = grouping.watch()
for call in made:
    call(1)
codes = [code for code in grouping.written_to(before) if code.co_name == "call"]
held = grouping.group(codes) if sys.argv[2] == "grouped" else []
for _ in range(50):
    for call in made:
        call(1)
immortal.immortalise()
gc.freeze()
for call in made:
    call(1)
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
if os.fork() == 0:
    private()
    before = private()
    total = sum(call(1) for call in made)
    print(len(codes), private() - before, total, flush=True)
    os._exit(0)
os.wait()
"""
AFTER = """
import gc, sys, traceback
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import grouping
def count(limit):
    for n in range(limit):
        yield n
def outer(step):
    def add(x):
        return x + step if x else step
    return add
class Box:
    def __init__(self, what):
        self.what = what
    def get(self):
        return self.what
def fail():
    raise ValueError("told")
old = outer(3)
running = count(4)
next(running)
codes = [f.__code__ for f in (count, outer, Box.__init__, Box.get, fail)]
codes.append(old.__code__)
held = grouping.group(codes)
assert count.__code__ is not codes[0] and count.__code__ == codes[0]
assert old.__code__ is outer(1).__code__ is not codes[-1]
del codes
gc.collect()
for _ in range(2000):
    assert [outer(2)(4), old(0), Box(7).get(), list(count(3))] == [6, 3, 7, [0, 1, 2]]
assert list(running) == [1, 2, 3]
try:
    fail()
except ValueError as error:
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"
fail.__code__ = (lambda: 5).__code__
gc.collect()
assert fail() == 5
print("sound")
"""


@pytest.mark.skipif(not grouping.supported(), reason="this interpreter is not known")
def test_a_copy_that_calls_writes_to_few_pages(run: Callable[..., str]) -> None:
    found, grouped_kb, total = map(int, run(APART, "grouped").split())
    same, apart_kb, as_much = map(int, run(APART, "as it is").split())
    assert (found, total) == (same, as_much)
    assert found == 200
    assert grouped_kb < apart_kb / 2


@pytest.mark.skipif(not grouping.supported(), reason="this interpreter is not known")
def test_moved_code_does_what_it_did(run: Callable[..., str]) -> None:
    assert run(AFTER) == "sound\n"


def test_an_interpreter_that_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping.immortal, "supported", lambda: False)
    assert grouping.group([test_moved_code_does_what_it_did.__code__]) == []
