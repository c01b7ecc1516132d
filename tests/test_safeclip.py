"""SafeCLIP: its phases, who is safe, what each term is of, and the state in a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from clipdef_jax import losses, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.losses import ring
from clipdef_jax.train import checkpoint, state
from tests.test_step import CLIP, mesh_of

BATCH, DIM, SIZE, LOG_SCALE = 64, 8, 100, 1.5
# Two epochs unimodal, one of CLIP, the fourth tells who is safe, and from the fifth on it grows.
LOSS = losses.get(
    "safeclip", pool_size=SIZE, warmup=2, slow=1, slow_weight=0.25, growth=0.1, fit_pairs=640
)


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def views_of(seed=0, mismatched=16):
    """Pairs that fit together, the last of them paired with something unrelated."""
    rng = np.random.default_rng(seed)
    image, other = (unit(rng.normal(size=(BATCH, DIM))) for _ in range(2))
    other -= np.sum(other * image, axis=1, keepdims=True) * image
    other[: BATCH - mismatched] = image[: BATCH - mismatched]
    text = unit(other + 0.15 * rng.normal(size=image.shape))
    augmented = {
        f"{name}_aug": unit(x + 0.1 * rng.normal(size=x.shape))
        for name, x in (("image", image), ("text", text))
    }
    return {"image": image, "text": text, **augmented}


VIEWS = views_of()
COSINE = np.sum(np.float64(VIEWS["image"]) * VIEWS["text"], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def call(loss, views, now, epoch):
    """The loss with its gradients by the views."""

    def value(views):
        out = loss(views, now, log_scale=LOG_SCALE, epoch=epoch)
        return out.value, out

    (_, out), gradients = jax.value_and_grad(value, has_aux=True)(views)
    return out, gradients


@functools.cache
def fresh(loss=LOSS):
    return loss.init_state(jax.random.key(0), DIM)


@functools.cache
def after(epochs, loss=LOSS, batches=60):
    """The state after as many epochs, of other batches."""
    now = fresh(loss)
    for epoch in range(1, epochs + 1):
        for seed in range(batches):
            now = call(loss, views_of(seed + 1), now, epoch)[0].state
    return now


def nce(query, keys, own):
    logits = np.exp(LOG_SCALE) * keys @ query
    return np.log(np.exp(logits).sum()) - logits[own]


def symmetric(a, b, rows):
    a, b = np.float64(a)[rows], np.float64(b)[rows]
    both = [(nce(a[i], b, i) + nce(b[i], a, i)) / 2 for i in range(len(a))]
    return np.mean(both) if both else 0.0


def terms_of(safe, now):
    """The three terms, pair by pair."""
    nearest = {}
    for name, pool in (("image", now.image_pool), ("text", now.text_pool)):
        nearest[name] = np.asarray(pool)[[np.argmax(np.asarray(pool) @ x) for x in VIEWS[name]]]
    return {
        "clip": symmetric(VIEWS["image"], VIEWS["text"], safe),
        "unimodal_image": symmetric(VIEWS["image_aug"], nearest["image"], ~safe),
        "unimodal_text": symmetric(VIEWS["text_aug"], nearest["text"], ~safe),
    }


def assert_safe(epoch, safe, scale=1.0):
    """Checks the terms against those of these safe pairs; a risky pair's CLIP has no gradient."""
    now = after(min(epoch - 1, 4))
    out, gradients = call(LOSS, VIEWS, now, epoch)
    expected = terms_of(safe, now)
    for name, term in expected.items():
        np.testing.assert_allclose(out.metrics[name], term, rtol=1e-5, err_msg=name)
    share = safe.mean()
    assert out.metrics["safe"] == pytest.approx(share)
    each = (expected["unimodal_image"] + expected["unimodal_text"]) / 2
    np.testing.assert_allclose(
        out.value, scale * (share * expected["clip"] + (1 - share) * each), rtol=1e-5
    )
    for name in ("image", "text"):
        np.testing.assert_array_equal(np.asarray(gradients[name]).any(axis=1), safe)
        np.testing.assert_array_equal(np.asarray(gradients[name + "_aug"]).any(axis=1), ~safe)


def highest(count):
    safe = np.zeros(BATCH, bool)
    safe[np.argsort(-COSINE)[:count]] = True
    return safe


def test_phases():
    fits = np.arange(BATCH) < BATCH - 16
    assert_safe(1, np.zeros(BATCH, bool))
    assert_safe(2, np.zeros(BATCH, bool))
    assert_safe(3, np.ones(BATCH, bool), scale=0.25)
    assert_safe(4, fits)
    # Three quarters were safe in the fourth epoch; a tenth more each; at most 85%.
    assert_safe(5, highest(int(np.ceil(0.85 * BATCH))))
    slower = losses.get("safeclip", pool_size=SIZE, warmup=2, slow=1, max_share=0.9, fit_pairs=640)
    for epoch, share in ((5, 0.76), (6, 0.77), (30, 0.9)):
        out, _ = call(slower, VIEWS, after(4), epoch)
        assert out.metrics["safe"] * BATCH == pytest.approx(share * BATCH, abs=1)


def test_all_epochs_are_one_program():
    programs = set()
    for epoch in range(1, 8):
        call(LOSS, VIEWS, fresh(), epoch)
        programs.add(call._cache_size())
    assert len(programs) == 1


def test_the_share_is_told_in_one_epoch_and_stays():
    assert after(3).share == 0
    assert after(4).share == pytest.approx(0.75, abs=0.02)
    assert call(LOSS, VIEWS, after(4), 5)[0].state.share == after(4).share


def test_the_cosines_are_those_of_the_last_pairs():
    one = call(LOSS, VIEWS, fresh(), 1)[0].state
    assert np.isnan(one.cosines[:-BATCH]).all()
    np.testing.assert_allclose(one.cosines[-BATCH:], COSINE, atol=1e-6)
    two = call(LOSS, views_of(1), one, 2)[0].state
    np.testing.assert_array_equal(two.cosines[:-BATCH], one.cosines[BATCH:])
    assert not np.isnan(after(1).cosines).any()


def test_pools_hold_the_originals_of_the_last_batches():
    now = fresh()
    for seed in (1, 2):
        now = call(LOSS, views_of(seed), now, 1)[0].state
    over = 2 * BATCH - SIZE
    for name, pool in (("image", now.image_pool), ("text", now.text_pool)):
        stream = np.concatenate([views_of(1)[name], views_of(2)[name]])
        np.testing.assert_array_equal(pool, np.concatenate([stream[SIZE:], stream[over:SIZE]]))
    assert int(now.pointer) == over


def test_choosing_has_no_gradient():
    """A safe pair's gradient is that of CLIP on the safe pairs, and nothing else."""
    safe = np.arange(BATCH) < BATCH - 16
    _, gradients = call(LOSS, VIEWS, after(3), 4)
    alone = {name: jnp.asarray(VIEWS[name][safe]) for name in ("image", "text")}
    clip = losses.get("clip")
    expected = jax.grad(lambda v: clip(v, (), log_scale=LOG_SCALE, epoch=1).value)(alone)
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name][safe], 0.75 * gradient, atol=1e-6)


def test_the_order_of_the_batch_does_not_matter():
    order = np.random.default_rng(1).permutation(BATCH)
    shuffled = {name: x[order] for name, x in VIEWS.items()}
    for epoch in (4, 5):
        (out, gradients), (out_2, gradients_2) = (
            call(LOSS, views, after(epoch - 1), epoch) for views in (VIEWS, shuffled)
        )
        np.testing.assert_allclose(out_2.value, out.value, rtol=1e-6)
        assert out_2.state.share == pytest.approx(out.state.share)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradients_2[name], gradient[order], atol=1e-6)


@pytest.mark.parametrize(
    ("image", "text"),
    [("image", "image"), ("image", "orthogonal"), ("one", "one")],
    ids=["alike", "unrelated", "collapsed"],
)
def test_equal_cosines_are_finite_in_all_epochs(image, text):
    half = unit(np.tile(np.eye(DIM // 2), (BATCH // (DIM // 2), 1)))
    zeros = np.zeros_like(half)
    made = {
        "image": np.hstack([half, zeros]),
        "orthogonal": np.hstack([zeros, half]),
        "one": np.tile(np.eye(DIM, dtype=np.float32)[0], (BATCH, 1)),
    }
    views = {"image": made[image], "text": made[text]}
    views |= {"image_aug": made[image], "text_aug": made[text]}
    now = fresh()
    for epoch in (1, *range(3, 8)):
        out, gradients = call(LOSS, views, now, epoch)
        unseen = out.state.cosines  # NaN at first, as they should be.
        for x in jax.tree.leaves((out._replace(state=out.state._replace(cosines=0)), gradients)):
            assert np.isfinite(x).all()
        np.testing.assert_allclose(unseen[-BATCH:], unseen[-1], atol=1e-6)
        now = out.state


def test_it_resumes_on_other_devices(tmp_path):
    tx = optax.sgd(0.1)
    alone, shared = (state.create(CLIP, LOSS, tx, 0, mesh_of(devices)) for devices in (1, 8))
    begun = after(4)
    begun = begun._replace(image_pool=padded(begun.image_pool), text_pool=padded(begun.text_pool))
    writer = checkpoint.Checkpoints(tmp_path / "c", {})
    writer.save(dataclasses.replace(alone, loss_state=begun))
    writer.close()
    reader = checkpoint.Checkpoints(tmp_path / "c", {})
    restored = reader.restore(checkpoint.abstract_of(shared)).loss_state
    reader.close()
    jax.tree.map(np.testing.assert_array_equal, restored, begun)
    for pool in (restored.image_pool, restored.text_pool):
        assert {len(part.data) for part in pool.addressable_shards} == {ring.ROWS // 8}

    with jax.set_mesh(mesh_of(8)):
        views = jax.device_put(VIEWS, NamedSharding(mesh_of(8), sharding.batch_spec()))
        out_8, gradients_8 = call(LOSS, views, restored, 5)
    out, gradients = call(LOSS, VIEWS, begun, 5)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6),
        (out_8, gradients_8),
        (out, gradients),
    )


def padded(pool):
    """The pool as it is on a mesh."""
    return jnp.pad(pool, ((0, ring.ROWS - len(pool)), (0, 0)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pool_size": 0}, "pool_size=0: expected a whole number from 1 on"),
        ({"warmup": -1}, "warmup=-1: expected a whole number from 0 on"),
        ({"slow": 1.5}, "slow=1.5: expected a whole number from 0 on"),
        ({"slow_weight": 0.0}, "slow_weight=0.0: expected above 0, up to 1"),
        ({"threshold": 90}, "threshold=90: expected above 0, up to 1"),
        ({"max_share": 85}, "max_share=85: expected above 0, up to 1"),
        ({"fit_pairs": 1}, "fit_pairs=1: expected a whole number from 2 on"),
        ({"growth": -0.01}, "growth=-0.01: expected from 0 to 1"),
    ],
)
def test_values_that_make_no_loss_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        losses.get("safeclip", **kwargs)
