"""The ``linux`` backend for the steps of a build: sandboxes of a root that no image names yet."""

import contextlib

import msgspec

from agentd.image.oci.roots import Lease
from agentd.image.oci.values import OciImage
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.sandbox.backends.linux.image import LinuxImageRoot
from agentd.sandbox.backends.linux.plan import LinuxPlan, make_plan


class _StepRoot(LinuxImageRoot):
    user_fix = "make that user in a RUN before, or write USER root, or a number"


class StepBackend(LinuxBackend):
    """All of a sandbox's root is the image's, /tmp and /workspace too: its changes are a layer."""

    def __init__(self) -> None:
        super().__init__()
        self._step: tuple[OciImage, str] | None = None
        self._uid = 0

    def start_of(self, image: OciImage, root: str) -> None:
        """Has the next sandbox start of an image: ``root`` is a path that stays until it ends."""
        self._step = image, root

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        return msgspec.structs.replace(make_plan(spec), bare=True)

    def only_uid(self) -> int | None:
        """Returns the one uid that is in the last sandbox; None where it has a range of them."""
        return None if self._uid == 0 and identity.available() else self._uid

    def _image_root(
        self, plan: LinuxPlan, undo: contextlib.ExitStack, kept: str | None
    ) -> LinuxImageRoot | None:
        assert self._step is not None  # noqa: S101  (who has the backend says what it starts of)
        image, path = self._step
        root = _StepRoot(image, Lease(path, -1))  # whoever builds has the lease
        undo.callback(root.close)
        self._uid = root.uid()
        return root
