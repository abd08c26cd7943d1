"""Measures agentd beside its peers in one run, and says which targets are met."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import audit
import cases
import density
import egress
import forks
import images
import inside
import machines
import peers
import plot
import policy
import reading
import readme
import registry
import report
import runtimes
import service

if TYPE_CHECKING:
    from stats import Case

CASES = (
    "fresh",
    "warm",
    "stdout",
    "fork",
    "image",
    "oci",
    "inside",
    "pull",
    "idle",
    "cli",
    "net",
    "vm",
    "daemon",
    "policy",
    "audit",
)
OUT = Path(__file__).resolve().parent / "out"


def main() -> int:
    options = _options()
    if find_spec("matplotlib") is None:  # told before an hour of measuring, not after it
        sys.exit("bench draws with matplotlib, which is not installed: run scripts/bench")
    measures: dict[str, Callable[[], list[Case]]] = {
        "fresh": lambda: [cases.fresh(options.rounds)],
        "warm": lambda: [cases.warm(options.rounds)],
        "stdout": lambda: [cases.stdout(options.rounds)],
        "fork": lambda: [forks.forks(max(1, options.rounds // 10))],
        "image": lambda: [
            images.images(max(9, options.rounds // 5)),
            images.templates(options.rounds),
        ],
        "oci": lambda: runtimes.runtimes(options.rounds),
        "inside": lambda: inside.inside(options.rounds),
        "pull": lambda: registry.registry(options.rounds),
        "idle": lambda: [density.idle(options.sandboxes)],
        "cli": lambda: [cases.cli(max(1, options.rounds // 3))],
        "net": lambda: [
            *egress.egress(options.rounds, options.sandboxes),
            *reading.reading(options.rounds),
        ],
        "vm": lambda: machines.machines(options.rounds),
        "daemon": lambda: service.service(options.rounds),
        "policy": lambda: policy.policy(options.rounds),
        "audit": lambda: audit.audit(options.rounds),
    }
    found: dict[str, list[Case]] = {}
    for key, measure in measures.items():
        if not options.only or key in options.only:
            print(f"measuring: {key} ...", file=sys.stderr, flush=True)
            found[key] = measure()
    machine = this_machine()
    results = [case for some in found.values() for case in some]
    OUT.mkdir(parents=True, exist_ok=True)
    # Some cases alone must not replace the whole table: each has its own.
    alone = found if options.only else {None: results}
    for only, some in alone.items():
        document = json.dumps(report.as_json(some, machine), indent=2)
        (OUT / f"{_stem(only)}.json").write_text(f"{document}\n")
    whole = json.dumps(report.as_json(results, machine))
    print(whole if options.json else report.as_text(results, machine), flush=True)
    code = max(readme.main(only=only) for only in alone)
    for only, some in alone.items():
        plot.write(some, OUT / f"{_stem(only)}.png")
    return code


def _stem(only: str | None) -> str:
    return f"results-{only}" if only else "results"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=_count, default=100, help="of each case (default: 100)")
    parser.add_argument("--sandboxes", type=_count, default=1000, help="idle ones (default: 1000)")
    parser.add_argument(
        "--only", type=_cases, default=(), metavar="CASE,...", help=f"some of {', '.join(CASES)}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    return parser.parse_args()


def _cases(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in CASES]:
        raise argparse.ArgumentTypeError(f"no case {unknown[0]!r}: there are {', '.join(CASES)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)


def this_machine() -> dict[str, str]:
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 30} GiB",
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": "root" if os.getuid() == 0 else f"uid {os.getuid()}",
        "load": f"{os.getloadavg()[0]:.1f} at the end",
        "taken": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **peers.versions(),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
