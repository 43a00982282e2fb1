"""Input channels as a launch is given them: what each names, and how the job reads it.

This room only reads what the user wrote and what lies on this machine; it uploads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Input:
    """A channel of a job, where more is to be said than where its data lies.

    Args:
        source: An `s3://` prefix or object, a `file://` URI, a folder, a file, or a glob pattern of files.
        mode: How the job gets it: `File` copies it before the script starts, `FastFile` shows it as a read-only folder
            that is read from S3 on demand, `Pipe` streams it (API: TrainingInputMode).
        sharded: Give each host its own part of the objects (API: ShardedByS3Key) instead of a copy of all.
        content_type: The MIME type of the data, which `open_dataset` believes (API: ContentType).
    """

    source: str | Path
    mode: Literal["File", "FastFile", "Pipe"] = "File"
    sharded: bool = False
    content_type: str | None = None
