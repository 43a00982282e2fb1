"""Where forked ranks meet, as those of torchrun do: at a store that is kept by none of them."""

import os
import signal

import torch.distributed


def forked_agent() -> tuple[int, int]:
    """Start what keeps the store at which ranks meet, as torchrun's agent does; it outlives whoever fails.

    A process of its own, for it runs threads, and to fork beside a thread that holds a lock leaves it locked for ever.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(writing, str(store.port).encode())
        os.close(writing)
        while True:
            signal.pause()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return process, int(pipe.read())
