"""A sandbox's changes become the last layer of an image: its own image with that on top."""

import shutil
import tempfile

from agentd.image.oci.building.bases import Bases
from agentd.image.oci.building.make import publish
from agentd.image.oci.building.syntax import Instructed
from agentd.image.oci.pull import SECONDS, explained
from agentd.image.oci.source import check_name
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import OciImage
from agentd.image.oci.work import WorkFolder
from agentd.image.store import Store
from agentd.model.errors import Refused, Unsupported
from agentd.model.image import ImageView
from agentd.model.spec import DEFAULT_IMAGE
from agentd.sandbox import exports
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager


def commit(manager: Manager, handle: SandboxHandle, name: str) -> ImageView:
    """Name an image of what the sandbox is now; one of that name is replaced.

    Raises InvalidInput, Conflict, Refused (it started of no OCI image, or host directories are
    mounted in it), Unsupported, ImageError.
    """
    check_name(name)
    _check(handle, name)
    store = OciStore()
    try:
        with store.work() as work:
            image = _committed(manager, handle, name, store, work)
    except OSError as error:
        raise explained(error, store, "made") from error
    return ImageView(image.name, image.digest, len(image.manifest.layers), image.size)


def _check(handle: SandboxHandle, name: str) -> None:
    Store().check_free(name)
    if handle.spec.image == DEFAULT_IMAGE:
        raise Refused(
            f"sandbox {handle.id} did not start of an OCI image",
            remediation="create it with --image, and --writable for all of its root",
        )
    if handle.backend not in exports.BACKENDS:
        raise Unsupported(
            f"backend {handle.backend} cannot commit a sandbox",
            remediation=f"create it with --backend {exports.BACKENDS[0]}",
        )


def _committed(
    manager: Manager, handle: SandboxHandle, name: str, store: OciStore, work: WorkFolder
) -> OciImage:
    folder = tempfile.mkdtemp(prefix="changes", dir=work.path)
    manager.capture(handle, folder)
    image = exports.image_of(kept.read_word(folder, "image"), f"sandbox {handle.id} started", store)
    told = Instructed("commit", 0, {}, handle.id)
    state = exports.changed(folder, handle.spec, image, told, store, work)
    shutil.rmtree(folder)
    bases = Bases(store, work, store.get, SECONDS)
    publish(state, name, f"sandbox:{handle.id}", store, work, bases)
    return store.get(name)
