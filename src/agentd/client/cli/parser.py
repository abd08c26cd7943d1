"""The parser of every command: one-line errors with what was meant, help that fits the terminal."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_UNKNOWN = "unrecognized arguments: "
# Of -timeout, whose -t and -i it has taken, before Python 3.12.
_IGNORED = re.compile(r"argument \S+: ignored explicit argument '(.*)'\Z")
_MISSING = "the following arguments are required: "
_WORDED = re.compile(r"exit codes:\Z")  # what is indented beneath it are words, no commands
_COMMENTED = re.compile(r"(?P<indent> +)(?P<command>\S.*?) {2,}(?P<comment>\S.*)\Z")
_CONTINUED = 6
# What tools call the same thing.
_SAME = (
    frozenset(("rm", "remove", "delete", "del", "revoke", "destroy")),
    frozenset(("ls", "list")),
    frozenset(("show", "inspect", "info", "get", "describe", "cat", "view")),
    frozenset(("create", "new", "add", "make", "build", "pull")),
    frozenset(("check", "validate", "lint")),
    frozenset(("deny", "reject", "refuse")),
    frozenset(("tail", "log", "logs")),
    frozenset(("prune", "clean", "gc")),
)


class Parser(argparse.ArgumentParser):
    """An error is an InvalidInput: one line, exit code 2, on every command alike.

    ``description`` and ``epilog`` are wrapped; lines that are indented are commands, and stay.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Help)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
        for name in (None, "store"):
            self.register("action", name, Once)
        self.set_defaults(prog=" ".join(self.prog.split()[:2]))  # as errors begin
        self.is_action = False
        self._intermixed = False
        self._words: Sequence[str] = ()
        self._actions_here: Mapping[str, str] = {}
        # ``--timeout -1s``: a value that is wrong, and no option.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_args(  # type: ignore[override]  # argparse's overloads are for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse as argparse does, where an option stands before an optional word, too: ``show
        --json NAME``. Before Python 3.13 it gave the word up at the option."""
        self._words = args or ()
        if self._has_optional_word():
            return self.parse_intermixed_args(args, namespace)
        return super().parse_args(args, namespace)

    def _has_optional_word(self) -> bool:
        return any(action.nargs == "?" for action in self._get_positional_actions())

    def run(self, words: Sequence[str]) -> int:
        """Run the action that ``words`` name, with their options; return its exit code."""
        options = self.parse_args(words)
        return int(options.run(options))

    def parse_known_args(  # type: ignore[override]  # argparse's overloads are for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, where an action's own error tells of what it does not know, and
        where an option stands before an action's optional word, as in ``parse_args``."""
        if self.is_action and not self._intermixed:
            self._words = args or ()
        if self.is_action and not self._intermixed and self._has_optional_word():
            self._intermixed = True  # it calls us for the options, and again for the words
            try:
                found, unknown = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._intermixed = False
        else:
            found, unknown = super().parse_known_args(args, namespace)
        if unknown and self.is_action and not self._intermixed:
            self.error(_UNKNOWN + " ".join(unknown))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        fix = f"see {self.prog} --help"
        if self._actions_here and message.startswith((f"{_MISSING}ACTION", f"{_MISSING}COMMAND")):
            fix = f"use one of: {', '.join(self._actions_here)}"
        if (found := _IGNORED.match(message)) and self._typed(f"-{found[1]}") in self._words:
            message = f"{_UNKNOWN}-{found[1]}"
        if message.startswith(_UNKNOWN):
            word = message.removeprefix(_UNKNOWN).split(" ")[0]
            typed = self._typed(word)
            message = message.replace(word, typed, 1)
            name = typed.partition("=")[0]
            likely = self._likely(name) if name.startswith("-") and len(name) > 2 else ""
            fix = f"did you mean {likely}? {fix}" if likely else fix
        raise InvalidInput(message, remediation=fix)

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """argparse's own hides that nobody reads its help."""
        (file or sys.stderr).write(message)

    def _typed(self, word: str) -> str:
        """Return what was typed: of -timeout argparse takes -t and -i, and does not know -meout."""
        if word in self._words or word[:1] != "-":
            return word
        joined = (each for each in self._words if re.match("-[^-]", each))
        return next((each for each in joined if each.endswith(word[1:])), word)

    def _likely(self, word: str) -> str:
        """Find the likeliest option by its letters: all have dashes, which would make any two short
        names alike."""
        names = [name.lstrip("-") for name in self._options() if name.startswith("--")]
        found = near(word.lstrip("-"), names)
        return f"--{found}" if found else ""

    def _options(self) -> list[str]:
        """List its own and those of its actions: argparse tells of the latter here, too."""
        subparsers = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        inner = [parser for each in subparsers for parser in each.choices.values()]
        return [name for each in (self, *inner) for name in each._option_string_actions]

    def action(self, actions: Mapping[str, str]) -> None:
        """Add a positional ``action``, one of ``actions``: their names, and what they do."""
        self._actions_here = actions
        self.add_argument("action", metavar="ACTION", choices=tuple(actions), help=_listed(actions))

    def actions(self, shared: "Callable[[Parser], None]" = lambda _: None) -> "Actions":
        """Begin actions with options of their own; ``add`` each to what this returns. ``shared``
        adds what all of them have."""
        subparsers = self.add_subparsers(metavar="COMMAND", dest="action", required=True)
        return Actions(self, subparsers, shared)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check as argparse does, and name the nearest choice."""
        choices = action.choices
        if choices is None or value in choices:
            return
        names = [str(choice) for choice in choices]
        likely = _elsewhere(str(value), names) or near(str(value), names)
        meant = f"; did you mean {likely}?" if likely else ""
        raise argparse.ArgumentError(
            action, f"invalid choice: {value!r} (choose from {', '.join(names)}{meant})"
        )


class Once(argparse._StoreAction):
    """An option that has one value: of two the last would win, and nobody be told."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given: set[str] = vars(namespace).setdefault("_given", set())
        if self.option_strings and self.dest in given:
            raise argparse.ArgumentError(self, "it is given twice, and has one value")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class AddedUp(argparse._AppendAction):
    """Texts with commas that add up, as one such text; an empty one adds nothing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        texts = (getattr(namespace, self.dest) or "", values)
        setattr(namespace, self.dest, ",".join(text for text in texts if text.strip()))


class Actions:
    def __init__(
        self,
        parser: Parser,
        subparsers: "argparse._SubParsersAction[Parser]",
        shared: Callable[[Parser], None],
    ) -> None:
        self._subparsers, self._shared = subparsers, shared
        self._known: dict[str, str] = {}
        parser._actions_here = self._known

    def add(
        self,
        name: str,
        about: str,
        examples: str,
        run: Callable[..., int] | None = None,
        description: str = "",
        **options: Any,
    ) -> Parser:
        """Add an action: ``about`` stands in the list of actions, and begins its own help; ``run``
        becomes an attribute of the options."""
        self._known[name] = about
        made = self._subparsers.add_parser(
            name,
            help=about,
            description=description or f"{about[0].upper()}{about[1:]}.",
            epilog=f"examples:\n{examples}",
            **options,
        )
        made.is_action = True
        made.set_defaults(run=run)
        self._shared(made)
        return made


class Help(argparse.HelpFormatter):
    """Prose is filled to the terminal's width; too long an indented line is broken."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        out: list[str] = []
        for block in _blocks(text):
            out += _filled(block, width)
        return "\n".join(f"{indent}{line}".rstrip() for line in out)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Say which options add up."""
        repeated = isinstance(action, argparse._AppendAction) and action.help
        return f"{action.help}; may be repeated" if repeated else action.help

    def _split_lines(self, text: str, width: int) -> list[str]:
        """A list of actions keeps its lines."""
        lines = text.splitlines() if "\n" in text else [text]
        return [part for line in lines for part in textwrap.wrap(line, width) or [""]]


def named(text: str) -> str:
    """Refuse "", where the option left out means something else: an unset variable is not that."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and names nothing")
    return text


def near(word: str, known: Iterable[str]) -> str:
    """Find the likeliest of ``known`` for a slip of the finger, or ""."""
    from difflib import get_close_matches

    found = get_close_matches(word.lower()[:64], list(known), n=1, cutoff=0.6)
    return found[0] if found else ""


def _elsewhere(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that other tools call ``word``, or ""."""
    same = next((words for words in _SAME if word.lower() in words), frozenset())
    return next((name for name in known if name in same), "")


def _listed(actions: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {about}" for name, about in actions.items())


def _blocks(text: str) -> list[list[str]]:
    """Runs of lines that are laid out together: prose, or what is indented; a heading alone."""
    blocks: list[list[str]] = []
    kind = ""
    for line in text.strip("\n").split("\n"):
        now = "blank" if not line.strip() else "code" if line.startswith(" ") else "prose"
        if line.endswith(":") and now == "prose" and len(line.split()) <= 2:
            now = "heading"
        if now != kind or now in ("blank", "heading"):
            worded = bool(blocks) and _WORDED.match(blocks[-1][0]) and now == "code"
            blocks.append([])
            kind = now
            if worded:
                blocks[-1].append("")  # marks words
        blocks[-1].append(line)
    return blocks


def _filled(block: list[str], width: int) -> list[str]:
    if block[0] == "" and len(block) > 1:
        words = " ".join(line.strip() for line in block[1:])
        return [part for word in words.split("; ") for part in _hung(word, width)]
    if not block[0].startswith(" "):
        return textwrap.wrap(" ".join(block), width, break_on_hyphens=False) or [""]
    if all(len(line) <= width for line in block):
        return block
    return [part for line in block for part in _apart(line, width)]


def _apart(line: str, width: int) -> list[str]:
    """A command with its comment above it, continued on the next line where it must be."""
    found = _COMMENTED.match(line)
    if found is None:
        return _continued(line, width)
    indent = found["indent"]
    return [f"{indent}# {found['comment']}", *_continued(f"{indent}{found['command']}", width)]


def _continued(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    at = max((at for at in _unquoted_spaces(line) if _CONTINUED < at < width - 1), default=0)
    if not at:
        return [line]
    return [f"{line[:at]} \\", *_continued(" " * _CONTINUED + line[at + 1 :], width)]


def _unquoted_spaces(line: str) -> list[int]:
    found, quote = [], ""
    for at, char in enumerate(line):
        if char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        elif char == " " and not quote:
            found.append(at)
    return found


def _hung(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ")
