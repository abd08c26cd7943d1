"""Files of a sandbox for asyncio."""

from agentd.client.aio_method import AioOnThreads, aio, aio_each
from agentd.client.files import Files
from agentd.client.signature import documented_by


@documented_by(Files)
class AsyncFiles(AioOnThreads[Files]):
    """Has the methods of Files as coroutines; ``read_iter`` and ``watch`` for ``async for``, and
    ``watch`` holds one of the threads."""

    read = aio(Files.read)
    read_text = aio(Files.read_text)
    write = aio(Files.write)
    upload = aio(Files.upload)
    download = aio(Files.download)
    list = aio(Files.list)
    stat = aio(Files.stat)
    mkdir = aio(Files.mkdir)
    exists = aio(Files.exists)
    move = aio(Files.move)
    remove = aio(Files.remove)
    read_iter = aio_each(Files.read_iter, Files._read_iter)
    watch = aio_each(Files.watch, Files._watch)
