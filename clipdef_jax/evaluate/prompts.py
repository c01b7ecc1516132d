"""Prompt templates: sentences with one gap for a class name."""

from __future__ import annotations

import pathlib
import re

from clipdef_jax.errors import UserError

EMOJI = (
    "a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image of a small {}.",
    "a scene with a {}.",
    "there is a {} here.",
    "a {} on a plain background.",
)
"""For the built-in emoji scenes."""

IMAGENET = (
    # Plain statements.
    "a {}.",
    "one {}.",
    "the {}.",
    "this is a {}.",
    "here is a {}.",
    "that is the {}.",
    "we can see a {}.",
    "you are looking at a {}.",
    "a picture of a {}.",
    "a picture of the {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photograph showing a {}.",
    "an image of a {}.",
    "an image of the {}.",
    "a snapshot of a {}.",
    "a photo showing many {}.",
    "a pair of {} in a photo.",
    # Framing and distance.
    "a close view of a {}.",
    "a close view of the {}.",
    "a detailed photo of a {}.",
    "a photo of a {} from far away.",
    "a photo of a {} from above.",
    "a photo of a {} from below.",
    "a photo of a {} from the side.",
    "a photo of part of a {}.",
    "a cropped picture of a {}.",
    "a cropped picture of the {}.",
    "a wide shot with a {} in it.",
    "a photo with a {} in the middle.",
    "a photo with a {} at the edge.",
    "a partly hidden {} in a photo.",
    # Light and quality.
    "a bright picture of a {}.",
    "a bright picture of the {}.",
    "a dark picture of a {}.",
    "a dark picture of the {}.",
    "a black and white picture of a {}.",
    "a colourful picture of a {}.",
    "a blurred picture of a {}.",
    "a sharp picture of a {}.",
    "a grainy picture of a {}.",
    "a low quality picture of a {}.",
    "a low quality picture of the {}.",
    "a high quality picture of a {}.",
    "a picture of a {} full of jpeg artefacts.",
    "a badly taken picture of a {}.",
    "a well taken picture of a {}.",
    # Looks.
    "a photo of a big {}.",
    "a photo of the big {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a photo of a pretty {}.",
    "a photo of an odd {}.",
    "a photo of an ordinary {}.",
    "a photo of a new {}.",
    "a photo of an old {}.",
    "a photo of somebody's {}.",
    "a photo of my own {}.",
    # Surroundings.
    "a photo of a {} indoors.",
    "a photo of a {} outdoors.",
    "a photo of a {} at night.",
    "a photo of a {} in daylight.",
    "a {} in front of a white background.",
    "a {} as it is found in the world.",
    # Depictions.
    "a drawing of a {}.",
    "a drawing of the {}.",
    "a pencil sketch of a {}.",
    "a painting of a {}.",
    "a painting of the {}.",
    "a cartoon of a {}.",
    "an icon of a {}.",
    "a computer rendering of a {}.",
    "a {} in a video game.",
    "a sculpture of a {}.",
    "a toy {}.",
    "a folded paper {}.",
    "an embroidered {}.",
    "a tattoo of a {}.",
)
"""Eighty sentences in the manner of CLIP's ensemble for ImageNet, in words of our own."""

_BUILTIN = {"emoji": EMOJI, "imagenet": IMAGENET}

# By sound: "a unicorn", "a ewe", "a one-way sign", but "an umbrella", "an unidentified thing".
_VOWEL_SOUND = re.compile(
    r"(?!eu|ewe|onc?e\b|ubi|ufo|uk|ur[aeou]|us[aebu]|ut[eio]|uni(?![nm]|d\w)|u\b)[aeiou]"
    r"|heir|honest|hono|hour|x-ray",
    re.IGNORECASE,
)
_ARTICLE_GAP = re.compile(r"\b([Aa])n? (?=\{\})")


def get(name: str) -> tuple[str, ...]:
    """Returns prompt templates, each with exactly one "{}" for the class name.

    Args:
      name: "emoji", "imagenet", or the path of a UTF-8 text file with one template per line; empty
        lines do not count.

    Raises:
      UserError: no such file, or a line without exactly one "{}".
    """
    if name in _BUILTIN:
        return _BUILTIN[name]
    try:
        text = pathlib.Path(name).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"prompts {name!r}: {error.strerror or error}; give one of {', '.join(_BUILTIN)}, "
            "or a text file with one template per line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompts {name!r}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    templates = [(number, line) for number, line in lines if line]
    for number, template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"prompts {name!r}, line {number}: {template!r} has {template.count('{}')} gaps, "
                "expected exactly one '{}' where the class name goes"
            )
    if not templates:
        raise UserError(f"prompts {name!r}: the file is empty; write one template per line")
    return tuple(template for _, template in templates)


def fill(template: str, name: str) -> str:
    """Returns `template` about the class `name`, its article suited to the name.

    >>> fill("a photo of a {}.", "umbrella")
    'a photo of an umbrella.'

    Args:
      template: with exactly one "{}".
      name: of the class.
    """
    article = r"\1n " if _VOWEL_SOUND.match(name) else r"\1 "
    return _ARTICLE_GAP.sub(article, template).replace("{}", name)
