"""Weights in and out: Hugging Face folders, and OpenAI's and OpenCLIP's safetensors."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  It teaches numpy, and so safetensors, what bfloat16 is.
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from clipdef_jax.errors import UserError
from clipdef_jax.models import interchange, names
from clipdef_jax.models.clip import CLIP, Params
from clipdef_jax.models.config import CLIPConfig

Tensors = dict[str, np.ndarray]

_WEIGHTS, _CONFIG, _PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
_SINGLE = (_WEIGHTS, "open_clip_model.safetensors")
_SHARDED = ("model.safetensors.index.json", "open_clip_model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt"}
# Our own config, in the metadata of a ResNet's weights: Hugging Face's CLIP has no ResNets.
_METADATA = "clipdef_jax"
# Buffers that hold no weights: counters, position indices, and facts that shapes tell as well.
_IGNORED = re.compile(
    r".*\.num_batches_tracked|.*\.position_ids|input_resolution|context_length|vocab_size"
)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
    allow_pickle: bool = False,
    **overrides: Any,
) -> tuple[CLIP, dict[str, Any]]:
    """Reads a CLIP.

    Args:
      path: a folder in Hugging Face's form, or one that `save` wrote, or one with OpenCLIP's
        files; or a .safetensors file, or the .index.json of several, with OpenAI's or OpenCLIP's
        names. Of such a file the shapes tell the architecture.
      dtype: compute dtype of the model; weights are float32 in any case.
      remat: as for `CLIP`.
      allow_pickle: also read PyTorch's pickle checkpoints, as weights only; needs PyTorch.
      **overrides: fields of `CLIPConfig` that the files do not tell, or tell wrongly, such as
        `activation="gelu"`.

    Returns:
      The model and its parameters, as `CLIP.init` makes them.

    Raises:
      UserError: no checkpoint there, one that cannot be read, or tensors that do not fit.
    """
    path = pathlib.Path(path).expanduser()
    folder, file = _locate(path, allow_pickle)
    tensors, metadata = _read(file)
    if any(name.startswith("vision_model.") for name in tensors):
        config = interchange.from_hugging_face(
            _read_json(folder / _CONFIG), _read_preprocessor(folder)
        )
        naming = names.hugging_face
    else:
        tensors = {_without_prefix(name): tensor for name, tensor in tensors.items()}
        config = _openai_config(folder, tensors, metadata)
        naming = names.openai
    if overrides:
        config = CLIPConfig.from_dict(config.to_dict() | overrides)
    clip = CLIP(config, dtype, remat)
    return clip, _adopt(clip, tensors, naming(config), file)


def save(path: str | os.PathLike[str], clip: CLIP, params: Params) -> None:
    """Writes a folder that `load` and, for a ViT, `transformers.CLIPModel` read.

    Hugging Face's CLIP has no ResNets: theirs get OpenAI's names, and the config as metadata of
    the safetensors file. The tokenizer is not written: it is not part of the model.

    A new folder appears whole or not at all. In a folder that exists already each file is replaced
    whole, and files of other names stay.

    Args:
      path: the folder.
      clip: the model.
      params: its parameters, all of them within reach of this process.

    Raises:
      UserError: the folder cannot be written, or Hugging Face has no form for the model.
    """
    path = pathlib.Path(path).expanduser()
    config = clip.config
    documents = {_PREPROCESSOR: interchange.preprocessor(config)}
    metadata = {"format": "pt"}
    if config.image_tower == "resnet":
        slots = names.openai(config)
        metadata[_METADATA] = json.dumps(config.to_dict())
    else:
        slots = names.hugging_face(config)
        documents[_CONFIG] = interchange.to_hugging_face(config)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    tensors = {
        name: np.asarray(slot.export(np.asarray(flat[slot.path], np.float32)), order="C")
        for name, slot in slots.items()
    }
    try:
        _write(path, documents, tensors, metadata)
    except OSError as error:
        raise UserError(f"cannot write the model to {path}: {error}") from None


def _write(
    path: pathlib.Path,
    documents: Mapping[str, Mapping[str, Any]],
    tensors: Tensors,
    metadata: dict[str, str],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)  # Of a process that was killed.
    draft.mkdir()
    try:
        for name, document in documents.items():
            (draft / name).write_text(json.dumps(document, indent=2) + "\n")
        safetensors.numpy.save_file(tensors, draft / _WEIGHTS, metadata)
        # safetensors keeps its files to their owner; who may read one of these may read all.
        shutil.copymode(draft / _PREPROCESSOR, draft / _WEIGHTS)
        if not path.exists():
            draft.rename(path)
            return
        for file in draft.iterdir():
            file.replace(path / file.name)
        if _CONFIG not in documents:  # Of another model that was here before.
            (path / _CONFIG).unlink(missing_ok=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _locate(path: pathlib.Path, allow_pickle: bool) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folder of a checkpoint and the file that holds its weights or lists them."""
    if path.is_file():
        folder, file = path.parent, path
    elif path.is_dir():
        candidates = [path / name for name in (*_SINGLE, *_SHARDED, *_PICKLED)]
        found = [file for file in candidates if file.is_file()]
        if not found:
            found = sorted(path.glob("*.safetensors"))
            if len(found) > 1:
                raise UserError(
                    f"{path} holds several models, {', '.join(file.name for file in found)}, and "
                    "no index: name the file"
                )
        if not found:
            raise UserError(f"{path} holds no model: expected {_WEIGHTS} or {_SHARDED[0]}")
        folder, file = path, found[0]
    else:
        raise UserError(f"there is no model at {path}: expected a folder or a .safetensors file")
    if file.suffix in _PICKLE_SUFFIXES and not allow_pickle:
        raise UserError(
            f"{file} is a pickle, which can run code when it is read: convert it to .safetensors "
            "where you trust it, or pass allow_pickle=True to read nothing but weights out of it"
        )
    return folder, file


def _read(file: pathlib.Path) -> tuple[Tensors, dict[str, str]]:
    if file.suffix in _PICKLE_SUFFIXES:
        return _read_pickle(file), {}
    if file.suffix == ".json":
        return _read_shards(file), {}
    if file.suffix != ".safetensors":
        raise UserError(f"{file} is no model file: expected .safetensors or .index.json")
    return _read_safetensors(file)


def _read_safetensors(file: pathlib.Path) -> tuple[Tensors, dict[str, str]]:
    try:
        with safetensors.safe_open(file, "numpy") as stored:
            names_there = stored.keys()
            return {name: stored.get_tensor(name) for name in names_there}, stored.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from None


def _read_shards(index: pathlib.Path) -> Tensors:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} has no 'weight_map': expected the index of a sharded model")
    tensors: Tensors = {}
    for name in sorted(set(weight_map.values())):
        shard = index.parent / name
        if shard.parent != index.parent or shard.suffix != ".safetensors":
            raise UserError(f"{index} names {name!r}, expected a .safetensors file beside it")
        if not shard.is_file():
            raise UserError(f"{index} names {name!r}, which is not there: fetch the missing part")
        tensors |= _read_safetensors(shard)[0]
    return tensors


def _read_pickle(file: pathlib.Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: reading a pickle needs PyTorch, which is not installed: install it, or "
            "convert the file to .safetensors elsewhere"
        ) from None
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Of many kinds, from the unpickler and from the archive.
        raise UserError(
            f"{file} cannot be read as weights only: {str(error).splitlines()[0]} If it is a "
            "TorchScript archive, as OpenAI's are, save torch.jit.load(file).state_dict() as "
            ".safetensors where you trust it"
        ) from None
    stored = stored.get("state_dict", stored)
    return {
        name: tensor.float().numpy()
        for name, tensor in stored.items()
        if isinstance(tensor, torch.Tensor)
    }


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: give the whole folder of the model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object")
    return content


def _read_preprocessor(folder: pathlib.Path) -> dict[str, Any]:
    """Returns preprocessor_config.json, or the same out of the newer processor_config.json."""
    if (folder / _PREPROCESSOR).is_file():
        return _read_json(folder / _PREPROCESSOR)
    if (folder / "processor_config.json").is_file():
        return _read_json(folder / "processor_config.json").get("image_processor", {})
    return {}


def _without_prefix(name: str) -> str:
    """Returns a tensor's name without what data parallelism and newer OpenCLIPs put before it."""
    return name.removeprefix("module.").removeprefix("text.")


def _openai_config(
    folder: pathlib.Path, tensors: Tensors, metadata: Mapping[str, str]
) -> CLIPConfig:
    if _METADATA in metadata:
        return CLIPConfig.from_dict(json.loads(metadata[_METADATA]))
    fields = interchange.from_openai({name: t.shape for name, t in tensors.items()})
    if (folder / "open_clip_config.json").is_file():
        config = _read_json(folder / "open_clip_config.json")
        fields = interchange.from_open_clip(config, fields)
    return CLIPConfig.from_dict(fields)


def _adopt(
    clip: CLIP, tensors: Tensors, slots: Mapping[str, names.Slot], file: pathlib.Path
) -> dict[str, Any]:
    """Returns the parameters that the tensors hold, or says which do not fit."""
    tensors = {name: t for name, t in tensors.items() if not _IGNORED.fullmatch(name)}
    shapes = traverse_util.flatten_dict(jax.eval_shape(clip.init, jax.random.key(0)), sep="/")
    expected = {
        name: slot.export(np.broadcast_to(np.float32(0), shapes[slot.path].shape)).shape
        for name, slot in slots.items()
    }
    problems = []
    for name in expected | tensors:
        if name not in tensors:
            problems.append(f"{name} {expected[name]} is missing")
        elif name not in expected:
            problems.append(f"{name} {tensors[name].shape} is not part of the model")
        elif tensors[name].shape != expected[name]:
            problems.append(f"{name} has shape {tensors[name].shape}, expected {expected[name]}")
    if problems:
        raise UserError(f"{file} does not fit a CLIP of its config: {'; '.join(problems)}")

    parts: dict[str, list[np.ndarray]] = {}
    for name, slot in slots.items():  # Thirds come in their order.
        parts.setdefault(slot.path, []).append(slot.adopt(tensors[name]))
    flat = {}
    for path, part in parts.items():
        whole = part[0] if len(part) == 1 else np.concatenate(part, axis=-1)
        flat[path] = jnp.asarray(whole, jnp.float32)
    return traverse_util.unflatten_dict(flat, sep="/")
