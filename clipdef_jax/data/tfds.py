"""Prepared TensorFlow Datasets, read through their ArrayRecord files; no TensorFlow is needed.

The builder's own code, which often imports TensorFlow, is never run: everything is in the files.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from clipdef_jax.data.examples import Examples
from clipdef_jax.data.table import Table, choose
from clipdef_jax.errors import UserError

_SPEC = re.compile(
    r"(?P<name>\w+)(?:/(?P<config>[^:]+))?(?::(?P<version>\d+\.\d+\.\d+))?:(?P<split>.+)"
)


def open_tfds(
    spec: str,
    *,
    data_dir: str | None = None,
    image_field: str | None = None,
    caption_field: str | None = None,
    label_field: str | None = None,
    uid_field: str | None = None,
    templates: str | None = None,
) -> Table:
    """Opens a split of a TFDS data set that was prepared with file_format="array_record".

    Args:
      spec: "NAME:SPLIT", as in "coco_captions:train", "imagenet_v2/topimages:test" or
        "cifar10:3.0.2:train[:10%]"; the latest version if none is given.
      data_dir: folder of the prepared data sets; None for $TFDS_DATA_DIR, or
        ~/tensorflow_datasets.
      image_field: the image feature; needed where there are several and none is called "image".
      caption_field: a text feature, the first where there are several in a record; None for a
        usual name: caption, captions/text, text, ... Without one, captions are made from labels.
      label_field: a class label; None for "label", or the only one there is.
      uid_field: a feature with a unique identifier; None for "uid" if there is one. Else records
        are known by file and position.
      templates: makes captions from class names; see `Table`.

    Raises:
      UserError: the data are not prepared, or in another format, or lack the split or a field.
    """
    source = f"source 'tfds:{spec}'"
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"{source}: expected 'tfds:NAME:SPLIT', as in 'tfds:coco_captions:train'")
    root = pathlib.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    folder = _prepared(source, root, match["name"], match["config"], match["version"])

    # Imported late: it takes half a second, which only those who use it should spend.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    info = builder.info
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{source}: {folder} holds {info.file_format.value} files, which have no random "
            "access; convert them with: tfds convert_format --out_file_format=array_record "
            f"--dataset_version_dir={folder} --out_dir=NEW_DATA_DIR/{folder.relative_to(root)}"
        )
    try:
        pieces = info.splits[match["split"]].file_instructions
    except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{source}: no split {match['split']!r}; it has: {', '.join(info.splits)}, and slices "
            f"like 'train[:10%]' ({' '.join(str(error).split())})"
        ) from None
    names = [pathlib.PurePath(piece.filename).name for piece in pieces]
    rows = Examples(source, pieces, [name.replace(".array_record", "") for name in names])

    features = dict(_flat(info.features))
    rows.columns = tuple(features)
    labels = {
        name: list(feature.names)
        for name, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    columns = choose(
        source,
        rows.columns,
        image=image_field or _image_field(source, features, tfds.features.Image),
        caption=caption_field,
        label=label_field or _only("label", labels),
        uid=uid_field,
        kind="field",
    )
    return Table(
        source,
        rows,
        columns,
        image_dir="",
        classes=labels.get(columns.label or ""),
        templates=templates,
    )


def _prepared(
    source: str, root: pathlib.Path, name: str, config: str | None, version: str | None
) -> pathlib.Path:
    """Returns the folder of a prepared data set."""
    folder = root / name
    configs = sorted(path.name for path in _folders(folder) if _versions(path))
    if config is None and not _versions(folder) and configs:
        if len(configs) > 1:
            raise UserError(
                f"{source}: {folder} holds several configs; name one, as in "
                f"'tfds:{name}/{configs[0]}:SPLIT': {', '.join(configs)}"
            )
        config = configs[0]
    folder = folder / (config or "")
    versions = _versions(folder)
    if versions and version in (None, *versions):
        return folder / (version or versions[-1])
    full = "/".join(filter(None, (name, config)))
    if versions:
        raise UserError(
            f"{source}: no version {version} of {full} in {root}; there is {', '.join(versions)}"
        )
    there = configs or [path.name for path in _folders(root) if path.name != "downloads"]
    raise UserError(
        f"{source}: no data set {full} is prepared in {root}, which holds "
        f"{', '.join(sorted(there)[:10]) or 'none'}; set data_dir, or prepare it with: "
        f"tfds build {full} --file_format=array_record --data_dir={root}"
    )


def _versions(folder: pathlib.Path) -> list[str]:
    """Returns the versions prepared in a folder, ascending."""
    found = [
        path.name
        for path in _folders(folder)
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda version: tuple(map(int, version.split("."))))


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the features by the names that they have in a record: nested ones as "outer/inner"."""
    inner = getattr(features, "feature", features)  # of a sequence
    if hasattr(inner, "items"):
        for name, feature in inner.items():
            yield from _flat(feature, f"{prefix}/{name}" if prefix else name)
    else:
        yield prefix, features


def _image_field(source: str, features: dict[str, Any], image_type: type) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, image_type)]
    images = [name for name in images if features[name].np_dtype.itemsize <= 2]
    chosen = _only("image", images)
    if chosen is None:
        raise UserError(
            f"{source}: which field holds the images? "
            + (
                f"Name it with image_field out of: {', '.join(images)}"
                if images
                else f"None of its features is an image of 8 or 16 bits: {', '.join(features)}"
            )
        )
    return chosen


def _only(usual: str, names: Collection[str]) -> str | None:
    if usual in names:
        return usual
    return next(iter(names)) if len(names) == 1 else None
