"""Each defence as a job, on a model too small to mean anything: what it reads and leaves."""

import jax
import numpy as np
import pytest

from clipdef_jax import models
from clipdef_jax.data import ids, tokenizer
from clipdef_jax.errors import UserError
from clipdef_jax.models import head
from clipdef_jax.train import metrics
from configs import cleanclip, par, roclip, supervised, tacleaner
from tests.test_experiment import SMALL, run, shrink

WORDS = tokenizer.train(["a photo of a banana on a red wall", "two frogs"], 600, 16)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The folder of a CLIP as it was born."""
    folder = tmp_path_factory.mktemp("given") / "model"
    words = {"vocab_size": WORDS.vocab_size, "eos_token_id": WORDS.eos_token_id}
    clip = models.get("ViT-Ti/4", **{**SMALL, **words, "context_length": 16})
    models.save(folder, clip, jax.jit(clip.init)(jax.random.key(0)))
    WORDS.save(folder)
    return folder


def repair(job, given, arg="smoke"):
    config = shrink(job.get_config(arg))
    config.init = str(given)
    config.finetune.control = False
    config.evaluate.during_training = 0
    config.augmentation = "none"
    return config


def terms(workdir, name):
    return metrics.read(workdir / name / "metrics.jsonl")


def test_tacleaner_trains_on_subcaptions(given, tmp_path):
    config = repair(tacleaner, given)
    config.loss.kwargs.fraction = 0.25
    summary = run(config, tmp_path / "run", devices=1)
    assert [row["model"] for row in summary["results"]] == ["given", "tacleaner"]
    rows = terms(tmp_path / "run", "tacleaner")
    assert len(rows) == 4
    for row in rows:
        # Of the four rows chosen some captions may have no word to exchange.
        assert 1 <= row["loss/subtext_rows"] <= 4
        assert row["loss/sub_positive"] > 0
        assert row["loss/sub_text"] > 0


def test_supervised_is_judged_by_its_head(given, tmp_path):
    summary = run(repair(supervised, given), tmp_path / "run", devices=1)
    before, after = summary["results"]
    assert (before["classifier"], after["classifier"]) == ("zero-shot", "head")
    assert 0 <= after["zero_shot_asr_top1"] <= 1
    kernel, classes = head.load(tmp_path / "run" / "supervised" / "model")
    assert len(classes) == 4
    assert np.asarray(kernel["kernel"]).any()
    _, start = models.load(given)
    _, end = models.load(tmp_path / "run" / "supervised" / "model")
    np.testing.assert_array_equal(end["text"]["projection"], start["text"]["projection"])
    assert (end["image"]["projection"] != start["image"]["projection"]).any()


def test_par_moves_away_from_the_model_given(given, tmp_path):
    run(repair(par, given), tmp_path / "run", devices=1)
    rows = terms(tmp_path / "run", "par")
    assert rows[0]["loss/image_distance"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["loss/image_distance"] > 1e-4


def test_cleanclip_unlearns_the_pairs_on_a_list(given, tmp_path):
    config = repair(cleanclip, given)
    config.loss.kwargs.flagged = True
    config.loss.kwargs.unlearn = 1.0
    config.data.static_eda = True
    with pytest.raises(UserError, match=r"takes out flagged pairs.*--config.data.flagged=FILE"):
        run(config, tmp_path / "none", devices=1)
    ids.write_ids(tmp_path / "list.txt", [f"emoji-train-0-{index:07d}" for index in range(32)])
    config.data.flagged = str(tmp_path / "list.txt")
    run(config, tmp_path / "run", devices=1)
    kept = [row["loss/kept"] for row in terms(tmp_path / "run", "cleanclip")]
    assert np.mean(kept) == pytest.approx(0.5)  # Half of the 64 are listed.


def test_roclip_pre_trains_on_augmented_pairs(tmp_path):
    config = shrink(roclip.get_config("smoke"))
    config.pretrain.epochs = 2
    config.augmentation = "none"  # The paper's takes long to compile.
    config.evaluate.during_training = 0
    summary = run(config, tmp_path / "run", devices=1)
    assert [row["model"] for row in summary["results"]] == ["poisoned"]
    assert len(terms(tmp_path / "run", "poisoned")) == 8


def test_a_classifier_needs_labels(given, tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption\nx.png,a frog\n")
    config = repair(supervised, given)
    config.data.train = f"csv:{tmp_path}/pairs.csv"
    config.data.kwargs = {}
    with pytest.raises(UserError, match=r"Supervised trains a classifier, .* has no labels"):
        run(config, tmp_path / "run", devices=1)
