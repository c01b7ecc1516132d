"""The training loop: it learns, resumes exactly, saves when interrupted, stops when not finite."""

import json
import shutil
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


def fit(folder, loss="clip", epochs=3, devices=1, source=None, lr=3e-3, minutes=10.0, **kwargs):
    folder.mkdir(exist_ok=True)
    loss = losses.get(loss) if isinstance(loss, str) else loss
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        return loop.fit(
            folder,
            CLIP_16,
            loss,
            loading.Loader(source or Numbers(64), WORDS, 8, loss.views, seed=0),
            loop.Recipe(epochs=epochs, batch=16, lr=lr, warmup=2, checkpoint_minutes=minutes),
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


def watch(params):
    """What is measured after an epoch; it may be interrupted."""
    interrupts.check()
    return {"clean_top1": float(jax.numpy.abs(params["image"]["projection"]).sum())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the parameters of an unbroken run, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, "cleanclip", on_epoch=watch, minutes=0.0)


def assert_ends_as(whole, folder):
    """Goes on with a broken run and compares its outcome with the whole one's."""
    assert_same(fit(folder, "cleanclip", on_epoch=watch), whole[1])
    assert (folder / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


@pytest.fixture
def handled():
    before = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    interrupts.install()
    yield
    for signum, handler in before:
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("where", "call", "saved"),
    [("step", 1, 1), ("step", 4, 4), ("step", 11, 11), ("epoch", 1, 4), ("epoch", 3, 12)],
)
def test_interrupted_anywhere_ends_the_same(
    tmp_path, monkeypatch, handled, whole, where, call, saved
):
    calls = []

    def interrupting(real):
        def wrapped(*args):
            calls.append(1)
            if len(calls) == call:
                signal.raise_signal(signal.SIGTERM)
            return real(*args)

        return wrapped

    on_epoch = interrupting(watch) if where == "epoch" else watch
    with monkeypatch.context() as patched:
        if where == "step":
            patched.setattr(loop, "_next", interrupting(loop._next))
        with pytest.raises(interrupts.Interrupted) as stopped:
            fit(tmp_path / "broken", "cleanclip", on_epoch=on_epoch)
    assert stopped.value.signum == signal.SIGTERM
    assert len(calls) == call
    assert checkpoints_in(tmp_path / "broken") == [saved]
    monkeypatch.setattr(interrupts, "_requested", None)
    assert_ends_as(whole, tmp_path / "broken")


def checkpoints_in(folder):
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_a_signal_while_data_workers_start_is_no_failure_of_theirs(tmp_path, monkeypatch):
    def batches():
        monkeypatch.setattr(interrupts, "_requested", int(signal.SIGTERM))
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -15.")
        yield

    monkeypatch.setattr(loading, "train_batches", lambda *args, **kwargs: batches())
    with pytest.raises(interrupts.Interrupted):
        fit(tmp_path)


def test_what_came_after_the_checkpoint_taken_is_done_again(tmp_path, whole, caplog):
    broken = tmp_path / "broken"
    shutil.copytree(whole[0], broken)
    assert checkpoints_in(broken) == [11, 12]
    shutil.rmtree(broken / "checkpoints" / "12" / "state")
    assert_ends_as(whole, broken)
    assert f"checkpoint {broken / 'checkpoints' / '12'} cannot be read" in caplog.text
    assert checkpoints_in(broken) == [11, 12]
    assert_ends_as(whole, broken)
    assert caplog.text.count("cannot be read") == 1


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
