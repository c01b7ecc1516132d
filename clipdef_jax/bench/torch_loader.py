"""The rival of the loader: PyTorch's DataLoader over the same records, images only."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipdef_jax.errors import BadRecord
from clipdef_jax.types import Source


class _Images(torch.utils.data.Dataset):
    """Decoded as torchvision's Resize (bicubic) and CenterCrop do."""

    def __init__(self, source: Source, side: int):
        self._source, self._side = source, side

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        try:
            image = self._source[index].image
        except BadRecord:
            return self[(index + 1) % len(self)]
        file = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else None
        picture = (file or Image.fromarray(np.asarray(image))).convert("RGB")
        scale = self._side / min(picture.size)
        if scale != 1:
            width, height = (max(self._side, round(scale * length)) for length in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = ((length - self._side) // 2 for length in picture.size)
        picture = picture.crop((left, top, left + self._side, top + self._side))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def batches(source: Source, side: int, batch: int, workers: int) -> Iterator[Any]:
    """Yields uint8 (batch, 3, side, side), epoch after epoch, shuffled."""
    loading = torch.utils.data.DataLoader(
        _Images(source, side),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return itertools.chain.from_iterable(itertools.repeat(loading))
