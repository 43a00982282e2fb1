"""How a job's container is made to start `supervisor_program`: as an entry point that carries the whole program.

The program travels in the request itself, because the container's own start-up is what it stands in front of: no
source has been downloaded yet. This room knows the limits of the API on an entry point, and nothing of processes.
"""

from __future__ import annotations

import base64
import textwrap
import zlib
from pathlib import Path

_MAX_ITEM_CHARACTERS = 256
"""API: ContainerEntrypoint and ContainerArguments hold 1 to 100 items of at most 256 characters."""
_START = "import base64,sys,zlib;exec(zlib.decompress(base64.b64decode(''.join(sys.argv[1:]))))"


def entrypoint() -> tuple[list[str], list[str]]:
    """Return ContainerEntrypoint and ContainerArguments of a job whose script is told of SIGTERM."""
    program = Path(__file__).with_name("supervisor_program.py").read_bytes()
    packed = base64.b64encode(zlib.compress(program, 9)).decode("ascii")
    return ["python3", "-c", _START], textwrap.wrap(packed, _MAX_ITEM_CHARACTERS)
