"""Run the server, until its standard input ends."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from sagemaker.server import make


def main() -> None:
    arguments = argparse.ArgumentParser(prog="sagemaker", description=__doc__)
    arguments.add_argument("folder", type=Path, help="where the jobs' files lie while they run")
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--without-namespaces", action="store_true")
    given = arguments.parse_args()
    # moto signs nothing, but botocore in this process wants keys.
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "server")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")
    server, application = make(given.port, given.folder, isolated=not given.without_namespaces)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready on port {server.port}", flush=True)
    # Whoever started the server holds the other end: when it is gone, so are its jobs.
    sys.stdin.read()
    application.jobs.forget_all()


if __name__ == "__main__":
    main()
