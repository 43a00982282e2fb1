"""Whether a folder streams from elsewhere: a FastFile channel is a mount that reads from S3 what is asked for.

The platform reports them as File (inputdataconfig.json of a FastFile channel), so that the mount itself is asked.
"""

from __future__ import annotations

from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


def is_streamed(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Return whether `folder` lies in a FUSE file system; False where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    kinds: dict[Path, str] = {}
    for line in lines:
        # proc(5): ... mount point is the fifth field, in octal escapes; the type follows a lone hyphen.
        fields = line.split(" ")
        if len(fields) > 6 and "-" in fields:
            place = fields[4].encode(errors="surrogateescape").decode("unicode_escape")
            kinds[Path(place)] = fields[fields.index("-") + 1]
    resolved = folder.resolve()
    nearest = next((place for place in (resolved, *resolved.parents) if place in kinds), None)
    return nearest is not None and kinds[nearest].startswith("fuse")
