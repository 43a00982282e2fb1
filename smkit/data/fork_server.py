"""What the server of reading processes imports first: it leaves the group of processes that it was started in.

torchrun sends SIGTERM to all processes of a rank's group, but a stop is the rank's affair: it saves first, and wants
batches until all ranks have agreed to stop. Whoever starts the server blocks SIGTERM until here; from here on it is
heard again, for what else the user starts from this server must be able to be ended. This room knows no reader.
"""

from __future__ import annotations

import os
import signal
import sys


def leave_the_group() -> None:
    """Be out of reach of what is sent to the group, and drop what has been sent before."""
    os.setpgid(0, 0)
    signal.sigtimedwait({signal.SIGTERM}, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


# Anywhere but in a server that multiprocessing has just started nothing happens.
if any("from multiprocessing.forkserver import main" in word for word in sys.orig_argv):
    leave_the_group()
