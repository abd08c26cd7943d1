"""Builds an image of a Dockerfile: stage by stage, a layer for each step that changes files.

A step is looked up by the digest of all that it depends on: the layers below, the instruction as
it is expanded, the environment and arguments that it sees, what it copies. Nothing is put into the
store before the last step has succeeded.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from agentd.image.model import Corrupt, Progress
from agentd.image.oci.building import copying
from agentd.image.oci.building.bases import Bases, state_of, take_built
from agentd.image.oci.building.command import command_of
from agentd.image.oci.building.copying import Copy, Inline
from agentd.image.oci.building.errors import BuildFailed, DockerfileError
from agentd.image.oci.building.ignore import BadPattern
from agentd.image.oci.building.layer import LayerWriter
from agentd.image.oci.building.running import Output, Runner, RunStep
from agentd.image.oci.building.source import FileSource, Unusable
from agentd.image.oci.building.stages import SCRATCH, BuildStage, BuildStages
from agentd.image.oci.building.state import REFUSED, WITHOUT_EFFECT, BuiltLayer, StageState, utc
from agentd.image.oci.building.syntax import Instructed, split
from agentd.image.oci.building.view import LayerIndex, RootView
from agentd.image.oci.steps import FORMAT, BuiltStep
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import LAYER, Descriptor, OciImage, check_digest, check_layers
from agentd.image.oci.work import WorkFolder
from agentd.model.errors import AgentdError

_COPY_FLAGS = frozenset(("from", "chown", "chmod", "link"))
_SHOWN = 300  # letters of an instruction
_WORDS = "COPY SOURCE... TARGET"
_MAX_NESTED = 64  # stages that are found one in another, since a variable names them


class Options(NamedTuple):
    """``args`` are the caller's; ``net`` is that of each RUN. ``epoch`` bounds all
    times, in seconds since 1970 (SOURCE_DATE_EPOCH)."""

    args: Mapping[str, str]
    net: str = "none"
    cache: bool = True
    epoch: int | None = None


class ImageBuild:
    """One build; ``steps`` counts those that were done, ``cached`` those of them that had been."""

    def __init__(
        self,
        stages: BuildStages,
        context: FileSource,
        store: OciStore,
        work: WorkFolder,
        bases: Bases,
        runner: Runner,
        options: Options,
        progress: Progress,
        output: Output,
    ) -> None:
        self._stages, self._context, self._store, self._work = stages, context, store, work
        self._bases, self._runner, self._options = bases, runner, options
        self._progress, self._output = progress, output
        self._done: dict[int, StageState] = {}
        self._indexes: dict[str, LayerIndex] = {}
        self._given = dict(options.args)
        self.steps = self.cached = 0
        self._counted: set[int] = set()
        self._total = self._nested = 0

    def run(self, target: BuildStage) -> StageState:
        """Build it. Raises DockerfileError, BuildFailed, ImageError."""
        needed = sorted(self._stages.needed(target))
        for number in needed:
            self._count(self._stages.all[number])
        for number in needed:  # what it needs is done by then, but for what a variable names
            self._stage(self._stages.all[number])
        return self._stage(target)

    def _count(self, stage: BuildStage) -> None:
        if stage.number not in self._counted:
            self._counted.add(stage.number)
            self._total += len(stage.instructions) + 1

    def _stage(self, stage: BuildStage) -> StageState:
        if stage.number in self._done:
            return self._done[stage.number]
        self._count(stage)
        self._nested += 1
        if self._nested > _MAX_NESTED:
            what = f"over {_MAX_NESTED} stages lie one in another, by variables of --from"
            raise self._stages.file.wrong(stage.line, what, "name them without variables")
        self._done[stage.number] = done = self._built(stage)
        self._nested -= 1
        return done

    def _built(self, stage: BuildStage) -> StageState:
        if isinstance(stage.base, int):
            before = self._stage(self._stages.all[stage.base])
            self._told(stage.line, f"FROM {self._stages.all[stage.base].name}")
            state = before.copy(self._given)
        else:
            self._told(stage.line, f"FROM {stage.base}")
            state = self._of_image(stage.base, stage.line)
        for instruction in stage.instructions:
            try:
                self._step(stage, state, instruction)
            except (Unusable, BadPattern) as error:
                fix = "name paths in the context; docs/building-images.md says what COPY takes"
                raise state.wrong(instruction, f"{instruction.word}: {error}", fix) from error
        return state

    def _of_image(self, name: str, line: int) -> StageState:
        if name == SCRATCH:
            return StageState(self._stages, {}, self._given)
        with self._explained(line, f"FROM {name}"):
            image = self._bases.image(name)
            state = state_of(image, self._stages, self._given, self._store, self._work)
        if triggers := state.config.pop("OnBuild", None):
            what = f"FROM {name}: its ONBUILD is not understood: {'; '.join(triggers)}"
            fix = f"write that into this Dockerfile, upon FROM scratch and COPY --from={name} / /"
            raise self._stages.file.wrong(line, what, fix)
        return state

    def _step(self, stage: BuildStage, state: StageState, instruction: Instructed) -> None:
        word = instruction.word
        if word in REFUSED:
            raise state.wrong(instruction, f"{word} is not understood", REFUSED[word])
        if word in ("COPY", "ADD"):
            self._copy(stage, state, instruction)
        elif word == "RUN":
            self._run(state, instruction)
        elif word == "WORKDIR":
            self._workdir(state, instruction)
        elif state.apply(instruction):
            self._told(instruction.line, instruction.shown)
            if word in WITHOUT_EFFECT:
                note = f"note: {word} has no effect here: {WITHOUT_EFFECT[word]}"
                self._progress(note, self.steps, self._total)
        else:
            fix = "write one of FROM, RUN, COPY, ADD, ENV, ARG, WORKDIR, USER, CMD, ENTRYPOINT"
            raise state.wrong(instruction, f"{word[:40]} is no instruction", fix)

    # --- RUN ---

    def _run(self, state: StageState, instruction: Instructed) -> None:
        net = instruction.flags.get("network", "default")
        if set(instruction.flags) - {"network"} or net not in ("default", "none", "host"):
            flag = next(iter(set(instruction.flags) - {"network"}), "network")
            raise state.wrong(
                instruction, f"RUN --{flag} is not understood", "leave it out of the RUN"
            )
        if net not in ("default", self._options.net):
            fix = f"leave it out, or build with --net {net}"
            raise state.wrong(instruction, f"RUN --network={net} is not what was granted", fix)
        argv, script = command_of(state, instruction)
        args = state.arguments()
        seen = (
            argv,
            script,
            args,
            state.config.get("Env"),
            state.config.get("User"),
            state.workdir,
        )
        key = self._key("RUN", state, (seen, self._options.net))
        if self._cached(state, instruction, [key]):
            return
        self._told(instruction.line, instruction.shown)
        with self._explained(instruction.line, "RUN"), self._bases.root(state) as root:
            step = RunStep(self._bases.described(state), root, argv, args | state.proxies(), script)
            with self._new_layer() as layer:
                end = self._runner.run(step, layer, self._output)
                if end.exit_code != 0:
                    raise self._failed(instruction, end.exit_code, end.told)
                self._add(state, instruction, [key], layer)

    def _failed(self, instruction: Instructed, code: int | None, told: str) -> BuildFailed:
        how = f"exit code {code}" if code is not None else told
        where = f"{self._stages.file.name}:{instruction.line}"
        return BuildFailed(
            f"{where}: {instruction.shown[:_SHOWN]} failed: {how}",
            line=instruction.line,
            instruction=instruction.shown,
            exit_code=code,
            cause=told if code is not None else "",
        )

    # --- COPY and ADD ---

    def _copy(self, stage: BuildStage, state: StageState, instruction: Instructed) -> None:
        word = instruction.word
        for flag in set(instruction.flags) - _COPY_FLAGS:
            raise state.wrong(instruction, f"{word} --{flag} is not understood", "leave it out")
        if word == "ADD" and "from" in instruction.flags:
            raise state.wrong(instruction, "ADD --from is not understood", "write COPY --from")
        *words, target = self._copied(state, instruction)
        inline = [
            Inline(doc.name, self._content(state, instruction, doc.content, expands=doc.expands))
            for doc in instruction.heredocs
        ]
        names = [each.word for each in instruction.heredocs]
        words = [each for each in words if each not in names]
        if word == "ADD":
            self._check_local(state, instruction, words)
        chmod = instruction.flags.get("chmod")
        copy = Copy(
            target=state.absolute(target),
            inline=tuple(inline),
            words=len(words) + len(inline),
            chown=state.expanded(instruction, instruction.flags.get("chown", "")),
            chmod=copying.check_mode(state.expanded(instruction, chmod)) if chmod else None,
        )
        keys: list[str] = []
        source = self._context
        with contextlib.ExitStack() as stack:
            if "from" in instruction.flags:  # what it holds is known, without a look at it
                name, origin = self._origin(stage, state, instruction)
                keys.append(self._key("COPY --from", state, (origin.chain, words, copy.digest())))
                if self._cached(state, instruction, keys):
                    return
                source = self._files(name, origin, instruction.line, stack)
            if words:
                found = copying.look(source, words, unpacks=word == "ADD")
                if not found and not inline:
                    raise Unusable(f"nothing in the {source.what} fits {' '.join(words)}")
                copy = copy._replace(named=found)
            keys.append(self._key(word, state, copy.digest()))
            if self._cached(state, instruction, keys):
                return
            self._told(instruction.line, instruction.shown)
            layer = stack.enter_context(self._new_layer())
            view = stack.enter_context(self._view(state))
            with self._explained(instruction.line, word):
                copying.write(copy, source, view, layer)
            self._add(state, instruction, keys, layer)

    def _copied(self, state: StageState, instruction: Instructed) -> list[str]:
        """The words, expanded; what stands for a heredoc is not."""
        docs = [doc.word for doc in instruction.heredocs]
        words = instruction.words or split(instruction.text, self._stages.file.escape)
        found = [w if w in docs else state.expanded(instruction, w) for w in words]
        if len(found) < 2 or not all(found):
            raise state.wrong(instruction, f"{instruction.word} wants two words", f"write {_WORDS}")
        return found

    def _content(
        self, state: StageState, instruction: Instructed, text: str, *, expands: bool
    ) -> bytes:
        return (state.expanded(instruction, text, quotes=False) if expands else text).encode()

    def _check_local(self, state: StageState, instruction: Instructed, words: list[str]) -> None:
        for word in words:
            if "://" in word or word.startswith("git@"):
                fix = "fetch it first, and ADD it; or RUN a program that does, with --net HOST"
                raise state.wrong(instruction, f"ADD of a URL, {word[:200]}", fix)

    def _origin(
        self, stage: BuildStage, state: StageState, instruction: Instructed
    ) -> tuple[str, StageState | OciImage]:
        """What a --from names, and that: a stage that is built, or an image that is here."""
        name = state.expanded(instruction, instruction.flags["from"])
        earlier = self._stages.earlier(stage, name)
        if earlier is not None:
            return name, self._stage(earlier)
        if not name or name == SCRATCH:
            raise Unusable(f"--from={name} has no files")
        with self._explained(instruction.line, f"COPY --from={name}"):
            return name, self._bases.image(name)

    def _files(
        self, name: str, origin: StageState | OciImage, line: int, stack: contextlib.ExitStack
    ) -> FileSource:
        """All of it: what is opened for that is closed with ``stack``."""
        with self._explained(line, f"COPY --from={name}"):
            if isinstance(origin, StageState):
                root = stack.enter_context(self._bases.root(origin))
            else:
                root = stack.enter_context(self._store.lease(origin)).path
            source = FileSource(root, f"files of {name}", owned=True)
        stack.callback(source.close)
        return source

    def _workdir(self, state: StageState, instruction: Instructed) -> None:
        path = state.absolute(state.expanded(instruction, instruction.text)).rstrip("/") or "/"
        state.config["WorkingDir"] = path
        user = str(state.config.get("User") or "")
        key = self._key("WORKDIR", state, (path, user))
        if self._cached(state, instruction, [key]):
            return
        self._told(instruction.line, instruction.shown)
        with self._view(state) as view, self._new_layer() as layer:
            if path != "/":
                owner = copying.known(user, view)
                copying.write(Copy(f"{path}/", chown=owner), None, view, layer)
            self._add(state, instruction, [key], layer)

    # --- layers ---

    @contextlib.contextmanager
    def _view(self, state: StageState) -> Iterator[RootView]:
        with self._bases.beneath(state) as (root, count):
            above = [self._index(layer) for layer in state.layers[count:]]
            view = RootView(root, above)
            try:
                yield view
            finally:
                view.close()

    def _index(self, layer: BuiltLayer) -> LayerIndex:
        if layer.diff_id not in self._indexes:
            self._indexes[layer.diff_id] = LayerIndex(layer.path)
        return self._indexes[layer.diff_id]

    def _key(self, word: str, state: StageState, told: object) -> str:
        whole = (FORMAT, word, state.chain, told, self._options.epoch)
        return hashlib.sha256(msgspec.json.encode(whole, order="deterministic")).hexdigest()

    @contextlib.contextmanager
    def _new_layer(self) -> Iterator[LayerWriter]:
        path = os.path.join(self._work.path, f"layer{self.steps}")
        layer = LayerWriter(path, self._options.epoch)
        try:
            yield layer
        finally:
            layer.close()

    def _cached(self, state: StageState, instruction: Instructed, keys: list[str]) -> bool:
        """Whether the step was there by the last of its keys; it is done then."""
        step = self._work.steps.get(keys[-1])
        if step is None and self._options.cache:
            step = self._store.steps.get(keys[-1])
        if step is None:
            return False
        path = ""
        if step.digest:
            try:
                path = take_built(step, self._store, self._work)
            except Corrupt:
                return False
        self._told(instruction.line, f"CACHED {instruction.shown}")
        self.cached += 1
        self._work.steps.update(dict.fromkeys(keys, step))
        self._apply(state, instruction, step, path)
        return True

    def _add(
        self, state: StageState, instruction: Instructed, keys: list[str], layer: LayerWriter
    ) -> None:
        digest, size = layer.finish()
        created = self._options.epoch if self._options.epoch is not None else layer.newest
        if layer.entries:
            path = os.path.join(self._work.blobs, check_digest(digest))
            os.replace(layer.path, path)
            step = BuiltStep(FORMAT, digest, size, created)
        else:
            path = ""
            os.unlink(layer.path)
            step = BuiltStep(FORMAT, "", 0, 0)
        self._work.steps.update(dict.fromkeys(keys, step))
        self._apply(state, instruction, step, path)

    def _apply(
        self, state: StageState, instruction: Instructed, step: BuiltStep, path: str
    ) -> None:
        if not step.digest:
            state.remember(instruction)
            return
        with self._explained(instruction.line, instruction.word):
            check_layers(len(state.layers) + 1)
        blob = Descriptor(LAYER, step.digest, step.size)
        state.layers.append(BuiltLayer(blob, step.digest, path, plain=True))
        state.remember(instruction, utc(step.created))

    # --- what is told ---

    def _told(self, line: int, what: str) -> None:
        self.steps += 1
        shown = f"{what[:_SHOWN]}..." if len(what) > _SHOWN else what
        self._progress(f"[{self.steps}/{self._total}] {shown}", self.steps, self._total)

    @contextlib.contextmanager
    def _explained(self, line: int, what: str) -> Iterator[None]:
        """An error within says at which line."""
        try:
            yield
        except (DockerfileError, BuildFailed):
            raise
        except AgentdError as error:
            error.message = f"{self._stages.file.name}:{line}: {what[:_SHOWN]}: {error.message}"
            raise
