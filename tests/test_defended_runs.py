"""Each defence as a job, on a model too small to mean anything: what it reads and leaves."""

import pathlib
import re

import jax
import numpy as np
import pytest

from clipdef_jax import jobs, models
from clipdef_jax.data import tokenizer
from clipdef_jax.errors import UserError
from clipdef_jax.models import head
from clipdef_jax.train import metrics
from configs import cleanclip, supervised
from tests.test_experiment import SMALL, run, shrink

WORDS = tokenizer.train(["a photo of a banana on a red wall", "two frogs"], 600, 16)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The folder of a CLIP that has learnt nothing."""
    folder = tmp_path_factory.mktemp("given") / "model"
    words = {"vocab_size": WORDS.vocab_size, "eos_token_id": WORDS.eos_token_id}
    clip = models.get("ViT-Ti/4", **{**SMALL, **words, "context_length": 16})
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(clip.init, jax.random.key(0))
    params = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), shapes)
    models.save(folder, clip, params)
    WORDS.save(folder)
    return folder


def repair(job, given, arg="smoke"):
    config = shrink(job.get_config(arg))
    config.init = str(given)
    config.finetune.control = False
    config.evaluate.during_training = 0
    config.augmentation = "none"
    return config


def test_supervised_is_judged_by_its_head(given, tmp_path):
    summary = run(repair(supervised, given), tmp_path / "run", devices=1)
    before, after = summary["results"]
    assert (before["classifier"], after["classifier"]) == ("zero-shot", "head")
    assert after["description"] == "fine-tuned on 64 clean pairs, classified by its head"
    assert 0 <= after["zero_shot_asr_top1"] <= 1
    kernel, classes = head.load(tmp_path / "run" / "supervised" / "model")
    assert len(classes) == 4
    assert np.asarray(kernel["kernel"]).any()
    _, start = models.load(given)
    _, end = models.load(tmp_path / "run" / "supervised" / "model")
    np.testing.assert_array_equal(end["text"]["projection"], start["text"]["projection"])
    assert (end["image"]["projection"] != start["image"]["projection"]).any()


def test_a_classifier_needs_labels(given, tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption\nx.png,a frog\n")
    config = repair(supervised, given)
    config.data.train = f"csv:{tmp_path}/pairs.csv"
    config.data.kwargs = {}
    with pytest.raises(UserError, match=r"Supervised trains a classifier, .* has no labels"):
        run(config, tmp_path / "run", devices=1)


DEFENCE = """
import jax.numpy as jnp
from clipdef_jax.losses.contrastive import symmetric_info_nce
from clipdef_jax.types import LossOutput


class Farther:
    views = ("image", "text", "text_neg", "has_subtext")

    def __init__(self, weight):
        self.weight = weight

    def init_state(self, rng, dim):
        return {"steps": jnp.zeros(())}

    def __call__(self, embeddings, state, *, log_scale, epoch):
        image, text = embeddings["image"], embeddings["text"]
        near = jnp.einsum("bd,bmd->b", image, embeddings["text_neg"]).mean()
        value = symmetric_info_nce(image, text, log_scale) + self.weight * near
        metrics = {"steps": state["steps"], "rows": embeddings["has_subtext"].sum()}
        return LossOutput(value, {"steps": state["steps"] + 1}, metrics)
"""


def run_outside(name, code, given, tmp_path, monkeypatch):
    """Trains with a loss of weight 0.5 out of a file that is not in the package."""
    (tmp_path / f"{name.partition(':')[0]}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = repair(cleanclip, given)
    pristine = config.copy_and_resolve_references()
    config.loss.name = name
    config.loss.kwargs.weight = 0.5
    jobs.drop_stale_kwargs(config, pristine, ["loss.name", "loss.kwargs.weight"])
    model = run(config, tmp_path / "run", devices=1)["results"][-1]["model"]
    return model, metrics.read(tmp_path / "run" / model / "metrics.jsonl")


def test_a_defence_from_outside_the_package_is_named_and_trained(given, tmp_path, monkeypatch):
    model, rows = run_outside("outside_defence:Farther", DEFENCE, given, tmp_path, monkeypatch)
    assert model == "farther"
    assert [row["loss/steps"] for row in rows] == [0, 1, 2, 3]
    # Of the two rows of a batch that are chosen some captions may have no word to exchange.
    assert 1 <= max(row["loss/rows"] for row in rows) <= 2


def test_the_readmes_defence_trains_by_its_name_alone(given, tmp_path, monkeypatch):
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"### Your defence.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    model, rows = run_outside("mydefence:Anchored", code, given, tmp_path, monkeypatch)
    assert model == "anchored"
    # The images are not changed here, so the anchor costs nothing.
    for row in rows:
        assert row["loss"] == row["loss/clip"]
