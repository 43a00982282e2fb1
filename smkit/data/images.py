"""From image files and their labels to a data set that decodes a whole batch at once, into the tensor that it returns.

Pixels stay 8-bit integers: making what a model wants of them is the step's, on its device. This room knows neither
channels nor where a label comes from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smkit.data.labels import Labels
from smkit.data.packed import PackedPaths
from smkit.data.pixels import Pixels, Size, by, centre, checked_size, decode, reason
from smkit.data.source import Allocate, SampleError, Source, fingerprint_of
from smkit.data.threads import in_threads
from smkit.errors import DataError

_PROBES = 16


class Images(Source):
    """Image files and their labels; a batch is `(images, labels)`, decoded when it is asked for.

    Images are uint8 (N, 3, H, W), RGB, in channels-last memory, labels int64 (N,). A step makes numbers of them where
    it computes, `images.float() / 255`, which moves a quarter of the bytes to a GPU. Grey and palette images become
    RGB, transparency is dropped, and EXIF orientation is applied.

    Without `size` all images must have one size. With it, of each image the largest centred part of that shape is
    scaled to it: the short side decides, the rest is cropped (bilinear, antialiased; a JPEG at least twice as large is
    decoded at a fraction of its size, which is much faster).

    Args:
        root: The folder that `paths` are relative to.
        paths: One file for each sample.
        labels: Classes, or integers that stay as they are.
        size: Height and width of every image, or the side of a square; by default that of the files.
        where: What an error names as their place.

    Raises:
        ConfigurationError: `size` is no size.
        DataError: Images have several sizes, or one cannot be read. Without `size` a few are tried at once.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Labels,
        *,
        size: int | Size | None = None,
        where: str = "Images",
    ) -> None:
        self._root = str(root)
        self._paths = PackedPaths(paths)
        self._where = where
        self.classes = tuple(sorted({label for label in labels if isinstance(label, str)}))
        number = {name: index for index, name in enumerate(self.classes)}
        self._labels = np.array([number[label] if isinstance(label, str) else label for label in labels], np.int64)
        self._scales = size is not None
        self.size = self._common_size() if size is None else checked_size(size)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: Tensor, allocate: Allocate) -> tuple[Tensor, Tensor]:
        """Return the batch of these samples; the decoders run in threads, as they do not need Python's lock."""
        samples = index.tolist()
        batch = allocate((len(samples), *self.size, 3), torch.uint8)
        pixels = batch.numpy()
        in_threads(lambda position: self._read(samples[position], pixels[position]), len(samples), self.threads_of_read)
        return batch.permute(0, 3, 1, 2), torch.from_numpy(self._labels[index.numpy()])

    @property
    def fingerprint(self) -> int:
        """Of the files' names, the labels and the size."""
        return fingerprint_of([self._paths.digest(), self._labels.tobytes(), self.size])

    def __repr__(self) -> str:
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"Images({len(self):,} samples{classes}: {by(self.size)} uint8)"

    def _common_size(self) -> Size:
        """Return the size of the first image, which a few others, spread over all, must share."""
        probes = np.linspace(0, len(self) - 1, min(_PROBES, len(self)), dtype=np.int64).tolist()
        first = self._decoded(probes[0], None)
        self.size = first.shape[0], first.shape[1]
        for index in probes[1:]:
            self._read(index, first)
        return self.size

    def _read(self, index: int, out: Pixels) -> None:
        """Put the pixels of a sample into `out` (H, W, 3)."""
        decoded = self._decoded(index, out)
        if self._scales:
            decoded = centre(decoded, self.size)
        elif decoded.shape != out.shape:
            raise DataError(
                f"the images differ in size (height x width): {self._paths[0]} is {by(self.size)}, "
                f"{self._paths[index]} is {by(decoded.shape)}",
                where=self._where,
                fix="scale them: `return smkit.open_dataset(channel, image_size=224)` in `build_dataset`",
            )
        if not np.may_share_memory(decoded, out):
            out[...] = decoded

    def _decoded(self, index: int, out: Pixels | None) -> Pixels:
        path = self._paths[index]
        try:
            with io.FileIO(f"{self._root}/{path}") as file:
                data = file.read()
            return decode(data, self.size if self._scales else None, out)
        except Exception as error:
            # What a damaged image makes the decoders raise has no common class.
            raise SampleError(
                f"{path} (sample {index}) cannot be read: {reason(error)}",
                sample=index,
                where=self._where,
                fix="replace the file or remove it, and check that the channel has arrived whole",
            ) from error
