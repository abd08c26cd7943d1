"""Prints how many lines of code each room of a checkout's src/agentd has.

A line counts when part of a statement is on it: blank lines, comments and docstrings do not.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def code_lines(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = [token for token in tokens if token.type not in NO_CODE]
    lines = {line for token in code for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docstring_lines(ast.parse(source)))


def docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())) as text, *_]:
                    lines.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def main(checkout: Path) -> None:
    package = checkout / "src" / "agentd"
    rooms: Counter[str] = Counter()
    for path in package.rglob("*.py"):
        inside = path.relative_to(package)
        room = f"{inside.parts[0]}/" if len(inside.parts) > 1 else "(top)"
        rooms[room] += code_lines(path.read_text(encoding="utf-8"))
    for room, lines in sorted(rooms.items()):
        print(f"{lines:7,}  {room}")
    print(f"{rooms.total():7,}  in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
