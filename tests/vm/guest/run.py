"""Runs every check and prints one JSON line for each; a failure is a line too."""

import json
import traceback
from collections.abc import Callable

import backend_checks
import delegation_checks
import group_checks

CHECKS: tuple[Callable[[], object], ...] = (
    *group_checks.CHECKS,
    *delegation_checks.CHECKS,
    *backend_checks.CHECKS,
    group_checks.nothing_left,
)


def main() -> None:
    for check in CHECKS:
        line: dict[str, object] = {"check": check.__name__}
        try:
            line["value"] = check()
        except BaseException:
            line["error"] = traceback.format_exc()
        print(json.dumps(line), flush=True)


main()
