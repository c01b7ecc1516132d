"""From a source to batches on the device: seeded, shuffled, sharded over processes, resumable.

A batch is a pure function of its step: which records it holds, and what is drawn for each of them.
So a run resumed at step n, with any number of workers or processes, sees what the unbroken run saw,
and the step is the whole state of the iterator.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from clipdef_jax import types
from clipdef_jax.data import captions, decode, ids, subcaptions
from clipdef_jax.data.tokenizer import Tokenizer
from clipdef_jax.errors import BadRecord, UserError

# A record's place is given to another one at most this often before the data count as unusable.
_MAX_TRIES = 100

Batch = dict[str, np.ndarray]

# What a loss may want of a training batch.
ARRAYS = (
    *("image", "text", "text_aug", "text_pos", "text_neg", "has_subtext"),
    *("label", "is_flagged"),
)


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads, decodes and tokenises the records of a batch. Picklable, for worker processes.

    Attributes:
      source: where the pairs come from.
      tokenizer: captions to token ids.
      side: pixels per side of the decoded images.
      views: the views the loss names; what they need besides images and texts is made here.
      seed: seeds the order of the records and everything drawn for them.
      subtext: how many sub-captions are made, for the views that want them.
      static_eda: make the augmented text of a record once, not afresh at every access.
      flagged: 128-bit ids of the records that the view "is_flagged" marks, as pairs of numbers;
        see `ids`.
    """

    source: types.Source
    tokenizer: Tokenizer
    side: int
    views: tuple[str, ...] = ("image", "text")
    seed: int = 0
    subtext: types.Subtext = dataclasses.field(default_factory=types.Subtext)
    static_eda: bool = False
    flagged: frozenset[tuple[int, int]] = frozenset()

    def read(self, index: int) -> types.Pair:
        """Returns a record with its image decoded to uint8 (side, side, 3).

        Raises:
          BadRecord: the image or the caption is unusable.
        """
        pair = decode.prepare_pair(self.source[index], self.side)
        if not pair.caption.strip():
            raise BadRecord(pair.uid, "empty caption")
        return pair

    def batch(
        self,
        indices: Sequence[int],
        rng_ids: Sequence[tuple[int, ...]],
        chosen: Sequence[bool] = (),
    ) -> dict[str, Any]:
        """Returns the batch of these records; a bad one gives its place to one drawn at random.

        Args:
          indices: record indices.
          rng_ids: per record, what seeds its generator besides `seed`.
          chosen: per record, whether it gets sub-captions, if `views` want any.

        Returns:
          "image" uint8 (B, side, side, 3), "text" int32 (B, L), "index" int32 (B,), and "skipped",
          the (uid, reason) of the bad records met. As `views` want, "text_aug" int32 (B, L);
          "text_pos" int32 (B, L), "text_neg" int32 (B, M, L) and "has_subtext" bool (B,), false
          too where no word of the caption can be exchanged; "label" int32 (B,); "is_flagged" bool
          (B,).

        Raises:
          UserError: record after record is bad.
        """
        pairs, used, rngs, skipped = [], [], [], []
        for index, rng_id in zip(indices, rng_ids, strict=True):
            rng = np.random.default_rng([self.seed, *rng_id])
            for _ in range(_MAX_TRIES):
                try:
                    pair = self.read(index)
                    break
                except BadRecord as bad:
                    skipped.append((bad.uid, bad.reason))
                    index = int(rng.integers(len(self.source)))
            else:
                raise UserError(
                    f"{_MAX_TRIES} bad records in a row, the last one {skipped[-1][0]!r}: "
                    f"{skipped[-1][1]}; check the data source"
                )
            pairs.append(pair)
            used.append(index)
            rngs.append(rng)
        texts = [pair.caption for pair in pairs]
        batch: dict[str, Any] = {
            "image": np.stack([pair.image for pair in pairs]),
            "text": self.tokenizer(texts),
            "index": np.array(used, np.int32),
            "skipped": skipped,
        }
        if "text_aug" in self.views:
            static = (np.random.default_rng([self.seed, index]) for index in used)
            drawn = zip(texts, static if self.static_eda else rngs, strict=True)
            batch["text_aug"] = self.tokenizer([captions.eda(text, rng) for text, rng in drawn])
        if "has_subtext" in self.views:
            batch |= self._subtexts(texts, rngs, chosen)
        if "label" in self.views:
            batch["label"] = np.array([pair.label for pair in pairs], np.int32)
        if "is_flagged" in self.views:
            own = ids.ids128(pair.uid for pair in pairs).tolist()
            batch["is_flagged"] = np.array([each in self.flagged for each in own])
        return batch

    def _subtexts(
        self, texts: Sequence[str], rngs: Sequence[np.random.Generator], chosen: Sequence[bool]
    ) -> Batch:
        count = self.subtext.negatives
        made = [
            subcaptions.make(text, rng, count) if choose else None
            for text, rng, choose in zip(texts, rngs, chosen, strict=True)
        ]
        positives = [parts.positive if parts else "" for parts in made]
        negatives = [
            text for parts in made for text in (parts.negatives if parts else [""] * count)
        ]
        return {
            "text_pos": self.tokenizer(positives),
            "text_neg": self.tokenizer(negatives).reshape(len(texts), count, -1),
            "has_subtext": np.array([parts is not None for parts in made]),
        }


def steps_per_epoch(source: types.Source, batch_size: int) -> int:
    """Returns the number of full batches in one pass; the rest of a pass is left out.

    Raises:
      UserError: the source holds less than one batch, or the batch size is not positive.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected a positive number of pairs")
    if len(source) < batch_size:
        raise UserError(
            f"the data hold {len(source)} pairs, less than one batch of {batch_size}; "
            "use a smaller batch or more data"
        )
    return len(source) // batch_size


def train_batches(
    loader: Loader,
    batch_size: int,
    epochs: int,
    *,
    start: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yields this process's rows of every global batch from step `start` on.

    Every epoch is a new permutation of all records. The rows of a global batch, and what is drawn
    for them, depend on the seed and the step alone; each process gets a contiguous block of them.

    Args:
      loader: reads the records.
      batch_size: rows of a global batch.
      epochs: passes over the data.
      start: first step to yield, to resume.
      workers: worker processes; 0 reads in threads of this process.
      process_index: which block of rows is this process's.
      process_count: number of blocks; divides `batch_size`.

    Raises:
      UserError: a batch does not fit the data or the processes.
    """
    steps = steps_per_epoch(loader.source, batch_size) * epochs
    if batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} is not divisible by the {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    if start >= steps:
        return iter(())
    rows = batch_size // process_count
    first = process_index * rows
    dataset = (
        grain.MapDataset.range(len(loader.source))
        .seed(loader.seed)
        .shuffle()
        .batch(batch_size, drop_remainder=True)
        .repeat(epochs)
        .map_with_index(functools.partial(_local_batch, loader=loader, first=first, rows=rows))
    )
    return iter(_prefetched(dataset[start:], workers))


def _prefetched(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    # Two threads hide the reading of a batch and leave the other cores to the computation.
    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    batches = dataset.to_iter_dataset(read)
    if not workers:
        return batches
    return batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_follow_the_main_process,
    )


def _follow_the_main_process(worker: int, workers: int) -> None:
    """Makes a worker leave signals to the main process, and end with it however that ends."""
    # Ctrl-C and cluster engines signal the whole group, and the last batches are still wanted.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None

    def watch() -> None:
        main.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _local_batch(
    step: int, indices: np.ndarray, *, loader: Loader, first: int, rows: int
) -> dict[str, Any]:
    local = slice(first, first + rows)
    chosen = subcaptions.choose_rows(loader.seed, step, len(indices), loader.subtext.fraction)
    rng_ids = [(step, row) for row in range(first, first + rows)]
    return loader.batch(indices[local].tolist(), rng_ids, chosen[local].tolist())


def read_blocks(
    loader: Loader, blocks: Sequence[tuple[int, int]], rows: int, *, workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Yields records in order, block by block, leaving out the bad ones.

    Args:
      loader: reads the records.
      blocks: (first, end) of the records of each.
      rows: of a block's arrays; at least its number of records.
      workers: worker processes; 0 reads in threads of this process.

    Yields:
      "image" uint8 (rows, side, side, 3) and "text" int32 (rows, L), filled up with zeros; of the
      readable records "index", "uid" and "caption", lists; and "skipped", the (uid, reason) of the
      others.
    """
    dataset = grain.MapDataset.source(blocks).map(
        functools.partial(_read_block, loader=loader, rows=rows)
    )
    return iter(_prefetched(dataset, workers))


def _read_block(block: tuple[int, int], *, loader: Loader, rows: int) -> dict[str, Any]:
    pairs, used, skipped = [], [], []
    for index in range(*block):
        try:
            pairs.append(loader.read(index))
            used.append(index)
        except BadRecord as bad:
            skipped.append((bad.uid, bad.reason))
    images = np.zeros((rows, loader.side, loader.side, 3), np.uint8)
    for row, pair in enumerate(pairs):
        images[row] = pair.image
    texts = loader.tokenizer([pair.caption for pair in pairs] or [""])
    texts = np.pad(texts[: len(pairs)], ((0, rows - len(pairs)), (0, 0)))
    return {
        "image": images,
        "text": texts,
        "index": used,
        "uid": [pair.uid for pair in pairs],
        "caption": [pair.caption for pair in pairs],
        "skipped": skipped,
    }


def eval_batches(
    source: types.Source, side: int, batch_size: int, on_skip: Callable[[str, str], None]
) -> Iterator[Batch]:
    """Yields every readable record once, in order, the last batch padded to full size.

    Args:
      source: where the pairs come from.
      side: pixels per side.
      batch_size: rows of a batch.
      on_skip: called with uid and reason of every record left out.

    Yields:
      "image" uint8 (B, side, side, 3), "label" int32 (B,), "index" int32 (B,), "mask" bool (B,):
      False marks padding.
    """
    images = np.zeros((batch_size, side, side, 3), np.uint8)
    labels: list[int] = []
    indices: list[int] = []
    for index in range(len(source)):
        try:
            pair = decode.prepare_pair(source[index], side)
        except BadRecord as bad:
            on_skip(bad.uid, bad.reason)
            continue
        images[len(labels)] = pair.image
        labels.append(pair.label)
        indices.append(index)
        if len(labels) == batch_size:
            yield _padded(images, labels, indices)
            images, labels, indices = np.zeros_like(images), [], []
    if labels:
        yield _padded(images, labels, indices)


def _padded(images: np.ndarray, labels: list[int], indices: list[int]) -> Batch:
    missing = len(images) - len(labels)
    return {
        "image": images,
        "label": np.array(labels + [-1] * missing, np.int32),
        "index": np.array(indices + [-1] * missing, np.int32),
        "mask": np.arange(len(images)) < len(labels),
    }


class UnreadableList:
    """The bad records of a run, each listed once, in `unreadable.csv`.

    Args:
      path: the CSV file (uid, reason); appended to, so that resumed runs keep the list.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = pathlib.Path(path)
        self._seen: set[str] = set()
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                self._seen.update(row["uid"] for row in csv.DictReader(file))

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, uid: str, reason: str) -> None:
        """Lists a record unless it is on the list."""
        if uid in self._seen:
            return
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(["uid", "reason"])
            writer.writerow([uid, reason])
        self._seen.add(uid)
