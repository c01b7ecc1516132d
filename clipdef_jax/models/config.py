"""What shape a CLIP has, and the shapes that have names."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal

from clipdef_jax.errors import UserError

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """The shape of a CLIP and the preprocessing it expects; JSON holds it without loss.

    Attributes:
      image_tower: "vit" or "resnet".
      image_size: side of the square pictures, in pixels.
      patch_size: side of a ViT's patch in pixels; unused by a ResNet.
      image_width: width of the ViT, or of the ResNet's first stage.
      image_layers: blocks of the ViT, or of each of the ResNet's four stages.
      image_heads: attention heads of the ViT, or of the ResNet's attention pool.
      image_mlp_width: hidden width of the ViT's MLPs; None: four times its width.
      embed_dim: size of the features.
      text_width, text_layers, text_heads, text_mlp_width: the same for the text transformer.
      context_length: most tokens in a text.
      vocab_size: number of tokens.
      eos_token_id: a text's feature is taken at the first of these, as Hugging Face does; None:
        at the first of the largest id in it, as OpenAI does.
      activation: "quick_gelu" (OpenAI) or "gelu".
      layer_norm_eps: added to the variance by every layer norm.
      pixel_mean, pixel_std: normalisation of RGB in [0, 1]; None: none.
      initial_log_scale: where the logarithm of the logit scale starts.
    """

    image_tower: Literal["vit", "resnet"] = "vit"
    image_size: int = 224
    patch_size: int = 32
    image_width: int = 768
    image_layers: int | tuple[int, int, int, int] = 12
    image_heads: int = 12
    image_mlp_width: int | None = None
    embed_dim: int = 512
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_mlp_width: int | None = None
    context_length: int = 77
    vocab_size: int = 49408
    eos_token_id: int | None = None
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pixel_mean: tuple[float, float, float] | None = PIXEL_MEAN
    pixel_std: tuple[float, float, float] | None = PIXEL_STD
    initial_log_scale: float = math.log(1 / 0.07)

    def __post_init__(self):
        for field in ("image_layers", "pixel_mean", "pixel_std"):
            value = getattr(self, field)
            if isinstance(value, list):  # As JSON has it; a tuple can be hashed.
                object.__setattr__(self, field, tuple(value))
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON can hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CLIPConfig:
        """Returns the config with these fields, and the defaults for the others.

        Raises:
          UserError: no such field, or a value that makes no model.
        """
        return cls(**_known(fields))


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(CLIPConfig)]
    for name in fields:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"unknown model field {name!r}{hint} Fields: {', '.join(names)}")
    return dict(fields)


def _check(config: CLIPConfig) -> None:
    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UserError(f"model.{field} is {getattr(config, field)!r}, expected {expected}")

    def require_positive(*fields: str) -> None:
        for field in fields:
            require(_is_positive(getattr(config, field)), field, "a positive integer")

    require(config.image_tower in ("vit", "resnet"), "image_tower", "'vit' or 'resnet'")
    require(config.activation in ("quick_gelu", "gelu"), "activation", "'quick_gelu' or 'gelu'")
    require_positive("image_size", "image_width", "image_heads", "embed_dim", "text_width")
    require_positive("text_layers", "text_heads", "context_length", "vocab_size")
    for field in ("image_mlp_width", "text_mlp_width"):
        value = getattr(config, field)
        require(value is None or _is_positive(value), field, "a positive integer or None")
    heads = f"a divisor of text_width {config.text_width}"
    require(config.text_width % config.text_heads == 0, "text_heads", heads)

    if config.image_tower == "vit":
        require_positive("image_layers", "patch_size")
        multiple, top_width = config.patch_size, config.image_width
    else:
        stages = config.image_layers
        four = isinstance(stages, tuple) and len(stages) == 4 and all(map(_is_positive, stages))
        require(four, "image_layers", "four positive integers, the blocks of a ResNet's stages")
        require(config.image_width % 2 == 0, "image_width", "an even number for a ResNet")
        multiple, top_width = 32, 32 * config.image_width
    size = f"a multiple of {multiple}, the pixels that become one position"
    require(config.image_size % multiple == 0, "image_size", size)
    heads = f"a divisor of {top_width}, the width that is attended over"
    require(top_width % config.image_heads == 0, "image_heads", heads)

    eos = config.eos_token_id
    in_vocabulary = eos is None or (isinstance(eos, int) and 0 <= eos < config.vocab_size)
    require(in_vocabulary, "eos_token_id", f"an id below vocab_size {config.vocab_size}, or None")
    for field in ("pixel_mean", "pixel_std"):
        value = getattr(config, field)
        three = isinstance(value, tuple) and len(value) == 3
        require(value is None or three, field, "three numbers, for red, green and blue, or None")
    both = (config.pixel_mean is None) == (config.pixel_std is None)
    require(both, "pixel_std", "a value if pixel_mean has one, None if it has none")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


_RN50 = CLIPConfig(
    image_tower="resnet",
    image_width=64,
    image_layers=(3, 4, 6, 3),
    image_heads=32,
    embed_dim=1024,
)
_VIT_B = CLIPConfig()
_TINY = CLIPConfig(
    image_size=32,
    patch_size=4,
    image_width=128,
    image_layers=4,
    image_heads=4,
    embed_dim=128,
    text_width=128,
    text_layers=3,
    text_heads=4,
    context_length=32,
    vocab_size=2048,
    activation="gelu",
)

NAMED: dict[str, CLIPConfig] = {
    "RN50": _RN50,
    "RN101": dataclasses.replace(_RN50, image_layers=(3, 4, 23, 3), embed_dim=512),
    "RN50x4": dataclasses.replace(
        _RN50,
        image_size=288,
        image_width=80,
        image_layers=(4, 6, 10, 6),
        image_heads=40,
        embed_dim=640,
        text_width=640,
        text_heads=10,
    ),
    "ViT-B/32": _VIT_B,
    "ViT-B/16": dataclasses.replace(_VIT_B, patch_size=16),
    "ViT-L/14": dataclasses.replace(
        _VIT_B,
        patch_size=14,
        image_width=1024,
        image_layers=24,
        image_heads=16,
        embed_dim=768,
        text_width=768,
        text_heads=12,
    ),
    "ViT-Ti/4": _TINY,
    # As small as carries a backdoor: two CPU cores train it on 1,600 pairs a second.
    "ViT-Ti/8": dataclasses.replace(
        _TINY,
        patch_size=8,
        image_width=96,
        image_layers=3,
        image_heads=3,
        embed_dim=64,
        text_width=64,
        text_layers=1,
        text_heads=2,
        context_length=16,
        activation="quick_gelu",  # Half the time of the exact one on a CPU, which has no erf.
    ),
    "RN-Ti": dataclasses.replace(
        _TINY, image_tower="resnet", image_width=16, image_layers=(1, 1, 1, 1), image_heads=8
    ),
}


def named(name: str, overrides: Mapping[str, Any]) -> CLIPConfig:
    """Returns the shape called `name` with some of its fields replaced.

    Raises:
      UserError: no such name or field, or fields that make no model.
    """
    if name not in NAMED:
        close = difflib.get_close_matches(name, NAMED, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"unknown model {name!r}{hint} Built in: {', '.join(NAMED)}")
    return CLIPConfig.from_dict(NAMED[name].to_dict() | dict(overrides))
