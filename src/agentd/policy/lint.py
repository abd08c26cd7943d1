"""What the engine takes without a word, and a policy must not have."""

import re

from agentd.policy.errors import BundleProblem

# Functions of nothing but their arguments: the same question has the same answer, and nothing is
# learnt or told outside of it. The engine has others: opa.runtime shows the environment.
PURE = re.compile(
    r"""(plus|minus|mul|div|rem|abs|ceil|floor|round|n?eq|equal|[lg]te?|and|or|assign
    |count|sum|product|max|min|sort|all|any|union|intersection|walk|concat|contains|endswith
    |startswith|format_int|indexof|indexof_n|lower|upper|replace|split|sprintf|substring|trim
    |trim_(left|right|prefix|suffix|space)|to_number|type_name
    |is_(number|string|boolean|array|set|object|null)
    |internal\.(member_[23]|print)
    |(array|bits|glob|graph|hex|base64|base64url|json|object|regex|semver|set|strings|units
      |urlquery|yaml)\.\w+
    |numbers\.(range|range_step)
    |crypto\.(hmac\.\w+|md5|sha1|sha256)
    |time\.(add_date|clock|date|diff|format|parse_duration_ns|parse_ns|parse_rfc3339_ns|weekday)
    )""",
    re.VERBOSE,
)
_PACKAGE = re.compile(r"\s*package\s+([\w.]+)\s*")
_SHADOW = re.compile(
    r"\b(?:input|data)\s*:=|(?:^(?:default\s+)?|\bas\s+)(?:input|data)\b(?!\s*[.\[])"
)
_WHOLE_INPUT = re.compile(r"\bwith\s+input\s+as\b")
_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:u[0-9a-fA-F]{4}|/)")


def modules(texts: dict[str, str]) -> list[BundleProblem]:
    return [problem for name, text in texts.items() for problem in _module(name, text)]


def package(text: str) -> str:
    """ "" where the module does not begin with one."""
    lines = [line.split("#")[0] for line in text.splitlines()]
    found = _PACKAGE.match(" ".join(lines[:200]) + " ")
    return found[1] if found else ""


def builtins(names: list[str]) -> list[BundleProblem]:
    return [
        BundleProblem(
            "", 0, f"{name} is not available to policies: it reaches beyond its arguments"
        )
        for name in sorted(names)
        if not PURE.fullmatch(name)
    ]


def _module(name: str, text: str) -> list[BundleProblem]:
    found = []
    own = package(text)
    if own != "agentd" and not own.startswith("agentd."):
        found.append(BundleProblem(name, 1, "its package must be agentd, or begin with agentd."))
    for number, line in enumerate(text.splitlines(), 1):
        code = line.split("#")[0] if '"' not in line and "`" not in line else line
        if _SHADOW.search(code):
            found.append(BundleProblem(name, number, "input and data cannot be other things"))
        if _WHOLE_INPUT.search(code):
            found.append(
                BundleProblem(
                    name, number, "the engine replaces members alone: with input.sandbox as ..."
                )
            )
        if _ESCAPE.search(code):
            found.append(
                BundleProblem(
                    name, number, "write the character itself: escapes of it are other texts"
                )
            )
    return found
