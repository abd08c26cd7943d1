"""Checks that every relative link in the repository's pages names a file that is there."""

import re
import sys
from pathlib import Path

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def broken(page: Path) -> list[str]:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target and ":" not in target]
    return [target for target in local if not (page.parent / target).exists()]


def main() -> int:
    pages = [*Path().glob("*.md"), *Path("docs").rglob("*.md")]
    wrong = [f"{page}: no such file: {target}" for page in pages for target in broken(page)]
    print("\n".join(wrong) or f"{len(pages)} pages, every relative link leads somewhere")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
