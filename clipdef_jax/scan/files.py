"""The files a scan leaves: the table of scores, the lists of whom to keep, cleaned tars."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax import detect, interrupts
from clipdef_jax.attacks import materialise
from clipdef_jax.data import ids, stored
from clipdef_jax.data.source import Kept
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.errors import UserError
from clipdef_jax.progress import Progress
from clipdef_jax.types import Source


class Neighbours(NamedTuple):
    """The pairs whose images are nearest to those of some pairs.

    Attributes:
      rows: (S,) the pairs.
      near: (S, K) rows of their neighbours, the nearest first.
      distances: (S, K) Euclidean, of the embeddings as they are.
    """

    rows: np.ndarray
    near: np.ndarray
    distances: np.ndarray


def search(found: Embeddings, rows: np.ndarray, k: int) -> Neighbours:
    """Finds the neighbours of some pairs among the images of all."""
    k = min(k, len(found) - 1)
    if not len(rows) or k < 1:
        return Neighbours(rows[:0], np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
    with Progress("neighbours", len(rows), unit="pairs") as progress:

        def on_step(done: int, steps: int) -> None:
            interrupts.check()
            progress.update(len(rows) * done // steps)

        distances, near = detect.knn(
            found.image[rows], found.image, k, exclude=rows[:, None], progress=on_step
        )
    return Neighbours(rows, near, distances)


def write_scores(
    path: pathlib.Path,
    found: Embeddings,
    scores: Mapping[str, np.ndarray],
    flagged: np.ndarray,
    neighbours: Neighbours,
) -> None:
    """Writes the table of all pairs, a row group for each file of embeddings.

    Columns: "uid", "shard" (the number of the file), "caption", one of each detector, "flag",
    "neighbours" and "distances". The last two are lists, null where they were not searched for: for
    all pairs they would take more room than the rest of the table.

    Args:
      path: of the Parquet file.
      found: the embeddings.
      scores: (N,) float32 by detector.
      flagged: bool (N,).
      neighbours: of some pairs.
    """
    import pyarrow as pa
    from pyarrow import parquet

    uids, captions = found.uids, found.captions
    names = uids.take(neighbours.near.reshape(-1)).to_pylist()
    width = neighbours.near.shape[1]
    place = np.full(len(found), -1)
    place[neighbours.rows] = np.arange(len(neighbours.rows))

    def table(number: int, first: int, last: int) -> pa.Table:
        places = place[first:last].tolist()
        near = [names[i * width : (i + 1) * width] if i >= 0 else None for i in places]
        far = [neighbours.distances[i].tolist() if i >= 0 else None for i in places]
        columns = {
            "uid": uids.slice(first, last - first),
            "shard": pa.array(np.full(last - first, number, np.int32)),
            "caption": captions.slice(first, last - first),
            **{name: pa.array(values[first:last]) for name, values in scores.items()},
            "flag": pa.array(flagged[first:last]),
            "neighbours": pa.array(near, pa.list_(pa.string())),
            "distances": pa.array(far, pa.list_(pa.float32())),
        }
        return pa.table(columns)

    with stored.replacing(path) as unfinished:
        schema = table(0, 0, 0).schema
        with parquet.ParquetWriter(unfinished, schema) as writer:
            for number, (first, last) in enumerate(
                zip(found.starts[:-1].tolist(), found.starts[1:].tolist(), strict=True)
            ):
                writer.write_table(table(number, first, last))


def write_lists(folder: pathlib.Path, found: Embeddings, flagged: np.ndarray) -> list[str]:
    """Writes keep.npy and drop.npy, of 128-bit ids, and keep.txt and drop.txt, of uids.

    Returns:
      Remarks for the user: a list that could not be written as text.
    """
    remarks = []
    for name, chosen in (("keep", ~flagged), ("drop", flagged)):
        uids = found.uids.filter(chosen).to_pylist()
        ids.write_ids(folder / f"{name}.npy", uids)
        try:
            ids.write_ids(folder / f"{name}.txt", uids)
        except UserError as error:
            remarks.append(str(error))
    return remarks


def write_clean_tars(
    folder: pathlib.Path,
    source: Source,
    keep: pathlib.Path,
    records_per_tar: int,
    on_skip: Callable[[str, str], None],
) -> int:
    """Writes the pairs of a list as webdataset tars, and the list beside them.

    Returns:
      The number of pairs.

    Raises:
      UserError: the folder holds tars of another list.
    """
    kept = Kept(source, keep)
    folder.mkdir(exist_ok=True)
    copy = folder / "keep.npy"
    if copy.exists() and copy.read_bytes() != keep.read_bytes():
        raise UserError(
            f"{folder} holds the pairs kept under other flags; move it away, or read the data by "
            f"the list: --config.data.train_kwargs.keep={keep}"
        )
    with stored.replacing(copy) as unfinished:
        unfinished.write_bytes(keep.read_bytes())
    start = min(len(list(folder.glob("*.tar"))) * records_per_tar, len(kept))
    with Progress("writing", len(kept), start, unit="pairs") as progress:

        def on_record(done: int) -> None:
            interrupts.check()
            progress.update(max(done, start))

        materialise.write_tars(
            kept, folder, records_per_tar=records_per_tar, on_skip=on_skip, on_record=on_record
        )
    return len(kept)


def known_poisons(found: Embeddings, uids: list[str]) -> np.ndarray:
    """Returns which pairs are among the poisons, bool (N,)."""
    own: Any = (uid for chunk in found.uids.chunks for uid in chunk.to_pylist())
    return ids.contained(ids.ids128(own), ids.ids128(uids))
