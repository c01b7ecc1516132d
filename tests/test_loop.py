"""The training loop: it learns, resumes exactly, saves when interrupted, stops when not finite."""

import json
import signal

import jax
import numpy as np
import pytest

from clipdef_jax import interrupts, losses
from clipdef_jax.data import loader as loading
from clipdef_jax.errors import UserError
from clipdef_jax.train import loop, metrics
from tests.test_loader import WORDS, Numbers
from tests.test_step import CLIP, mesh_of

CLIP_16 = CLIP.__class__(
    CLIP.config.from_dict(
        CLIP.config.to_dict()
        | {"vocab_size": WORDS.vocab_size, "context_length": 16, "image_size": 8}
    )
)


def fit(folder, loss="clip", epochs=3, devices=1, source=None, lr=3e-3, **kwargs):
    folder.mkdir(exist_ok=True)
    loss = losses.get(loss) if isinstance(loss, str) else loss
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        return loop.fit(
            folder,
            CLIP_16,
            loss,
            loading.Loader(source or Numbers(64), WORDS, 8, loss.views, seed=0),
            loop.Recipe(epochs=epochs, batch=16, lr=lr, warmup=2),
            augment=lambda key, images: images,
            mesh=mesh,
            unreadable=loading.UnreadableList(folder / "unreadable.csv"),
            **kwargs,
        )


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(autouse=True)
def no_request(monkeypatch):
    monkeypatch.setattr(interrupts, "_requested", None)


def test_learns_and_writes_what_it_did(tmp_path):
    seen = []
    fit(
        tmp_path,
        epochs=40,
        lr=1e-3,
        source=Numbers(32),
        on_epoch=lambda params: seen.append(1) or {"clean_top1": 0.5},
    )
    rows = metrics.read(tmp_path / "metrics.jsonl")
    losses_by_step = [row["loss"] for row in rows if "loss" in row]
    assert len(losses_by_step) == 80
    # Chance is log(16): every pair of the batch looks alike.
    assert np.mean(losses_by_step[-4:]) < np.log(16) - 0.2
    assert {"grad_norm", "log_scale", "lr", "epoch", "loss/clip"} <= rows[0].keys()
    assert rows[0]["lr"] == pytest.approx(5e-4)
    assert len(seen) == 40
    assert [row["step"] for row in rows if "clean_top1" in row] == list(range(2, 81, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The parameters of an unbroken run."""
    return fit(tmp_path_factory.mktemp("whole"), "cleanclip")


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_interrupted_anywhere_ends_with_the_same_parameters(tmp_path, monkeypatch, whole, stop_at):
    real = loop._next
    calls = []

    def interrupting(*args):
        calls.append(1)
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interrupts.install()
    try:
        monkeypatch.setattr(loop, "_next", interrupting)
        with pytest.raises(interrupts.Interrupted) as stopped:
            fit(tmp_path / "broken", "cleanclip")
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert stopped.value.signum == signal.SIGTERM
    assert len(calls) == stop_at
    saved = [p.name for p in (tmp_path / "broken" / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == [str(stop_at)]
    monkeypatch.setattr(interrupts, "_requested", None)
    monkeypatch.setattr(loop, "_next", real)
    assert_same(fit(tmp_path / "broken", "cleanclip"), whole)
    steps = [row["step"] for row in metrics.read(tmp_path / "broken" / "metrics.jsonl")]
    assert steps == list(range(1, 13))


def test_a_finished_run_is_not_trained_further(tmp_path):
    assert_same(fit(tmp_path), fit(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Breaks:
        views = ("image", "text")

        def init_state(self, rng, dim):
            return ()

        def __call__(self, embeddings, state, *, log_scale, epoch):
            from clipdef_jax.types import LossOutput

            value = (embeddings["image"] * embeddings["text"]).sum()
            return LossOutput(value / (2 - epoch), state, {})

    with pytest.raises(UserError, match=r"the loss is -?(inf|nan) at step 5, batch r\d+, r\d+"):
        fit(tmp_path, Breaks())
    report = json.loads((tmp_path / "not_finite.json").read_text())
    batches = list(loading.train_batches(loading.Loader(Numbers(64), WORDS, 8), 16, 2))
    assert report["step"] == 5
    assert report["uids"] == [f"r{i}" for i in batches[4]["index"]]


def test_batch_that_does_not_fit_the_devices(tmp_path):
    with pytest.raises(UserError, match="batch 16 is not divisible by the 3 devices"):
        fit(tmp_path, devices=3)
    assert not (tmp_path / "checkpoints").exists()


def test_bad_records_are_listed(tmp_path):
    fit(tmp_path, epochs=1, source=Numbers(64, {5: "image", 9: "caption"}))
    assert len(loading.UnreadableList(tmp_path / "unreadable.csv")) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch", -8), ("lr", float("nan")), ("accumulate", 0), ("warmup", -1)],
)
def test_recipes_are_checked(field, value):
    with pytest.raises(UserError, match=f"{field}={value}"):
        loop.Recipe(**{"epochs": 1, "batch": 8, "lr": 0.1, field: value})
