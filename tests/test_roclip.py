"""RoCLIP: the golden stream, cadence and options, the pool in a run, and what it costs."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from clipdef_jax import flops, losses, models, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.losses import ring
from clipdef_jax.losses.contrastive import symmetric_info_nce
from clipdef_jax.train import checkpoint, optimizer, state, step
from tests.test_step import CLIP, batch_of, invert, mesh_of

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "roclip_pool_B32_P100.npz")
SIZE, BATCH, DIM = 100, 32, 24
SCALE = GOLDEN["log_scale"]


def call(loss, now, image, text, epoch=1):
    return loss({"image": image, "text": text}, now, log_scale=SCALE, epoch=epoch)


def golden_state(loss, rows=SIZE):
    pool = np.pad(GOLDEN["pool_init"], ((0, rows - SIZE), (0, 0)))
    return loss.init_state(jax.random.key(0), DIM)._replace(pool=jnp.asarray(pool))


@pytest.mark.parametrize(
    ("devices", "rows"),
    # Without a mesh; as a run makes it; and a pool of which the devices cannot have equal shares.
    [(0, SIZE), *((devices, ring.ROWS) for devices in (1, 2, 4, 8)), (8, SIZE)],
)
def test_the_golden_stream(devices, rows):
    loss = losses.get("roclip", pool_size=SIZE, every=1)

    @jax.jit
    def advance(now, image, text):
        def value(image, scale):
            out = loss({"image": image, "text": text}, now, log_scale=scale, epoch=1)
            return out.value, out

        gradient_fn = jax.value_and_grad(value, (0, 1), has_aux=True)
        (_, out), gradients = gradient_fn(image, jnp.asarray(SCALE))
        return out, gradients, ring.nearest(now.pool, image, size=SIZE)[0]

    def stream():
        now = golden_state(loss, rows)
        for number, (image, text) in enumerate(zip(GOLDEN["image"], GOLDEN["text"], strict=True)):
            if devices:
                split = NamedSharding(mesh_of(devices), sharding.batch_spec())
                image, text = jax.device_put((image, text), split)
            out, (d_image, d_scale), nearest = advance(now, image, text)
            now = out.state
            np.testing.assert_array_equal(nearest, GOLDEN["nearest"][number])
            for got, name in ((out.value, "loss"), (d_image, "d_image"), (d_scale, "d_log_scale")):
                np.testing.assert_allclose(got, GOLDEN[name][number], rtol=0, atol=2e-6)
        np.testing.assert_array_equal(now.pool[:SIZE], GOLDEN["pool_final"])
        assert int(now.pointer) == int(GOLDEN["pointer_final"])

    if devices:
        with jax.set_mesh(mesh_of(devices)):
            stream()
    else:
        stream()


IMAGE, TEXT = GOLDEN["image"][0], GOLDEN["text"][0]


def written(loss, epoch):
    before = golden_state(loss)
    after = call(loss, before, IMAGE, TEXT, epoch).state
    changed = np.asarray(after.pool != before.pool).any(axis=1)
    assert changed.sum() in (0, BATCH)
    assert int(after.pointer) == changed.sum()
    return bool(changed.any())


def test_only_every_kth_epoch_matches_and_writes():
    loss = losses.get("roclip", pool_size=SIZE, every=3)
    plain = losses.get("clip")
    for epoch in range(1, 8):
        out = call(loss, golden_state(loss), IMAGE, TEXT, epoch)
        expected = GOLDEN["loss"][0] if epoch % 3 == 0 else call(plain, (), IMAGE, TEXT).value
        np.testing.assert_allclose(out.value, expected, rtol=1e-6)
        assert written(loss, epoch) == (epoch % 3 == 0)


def test_options_of_writing():
    always = losses.get("roclip", pool_size=SIZE, every=3, update_always=True)
    warm = losses.get("roclip", pool_size=SIZE, every=3, warm_start=True)
    assert [written(always, epoch) for epoch in range(1, 7)] == [True] * 6
    assert [written(warm, epoch) for epoch in range(1, 7)] == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]


def test_captions_of_the_pool_carry_no_gradient():
    loss = losses.get("roclip", pool_size=SIZE, every=2)

    def d_text(epoch):
        return jax.grad(lambda t: call(loss, golden_state(loss), IMAGE, t, epoch).value)(TEXT)

    assert not d_text(2).any()
    assert d_text(1).any()


def test_both_ways_is_the_mean_of_both():
    loss = losses.get("roclip", pool_size=SIZE, every=2, two_way=True)
    before = golden_state(loss)
    out = call(loss, before, IMAGE, TEXT, epoch=2)
    images = before.image_pool[np.argmax(TEXT @ np.asarray(before.image_pool).T, axis=1)]
    other = symmetric_info_nce(jnp.asarray(TEXT), images, SCALE)
    np.testing.assert_allclose(out.value, (GOLDEN["loss"][0] + other) / 2, rtol=1e-6)
    np.testing.assert_array_equal(out.state.image_pool[:BATCH], IMAGE)
    np.testing.assert_array_equal(out.state.pool[:BATCH], TEXT)
    plain = call(loss, before, IMAGE, TEXT, epoch=1).value
    np.testing.assert_allclose(plain, call(losses.get("clip"), (), IMAGE, TEXT).value, rtol=1e-6)


def test_augmented_views_take_the_place_of_the_originals():
    loss = losses.get("roclip", pool_size=SIZE, every=1, augmented=True)
    assert loss.views == ("image_aug", "text_aug")
    out = loss({"image_aug": IMAGE, "text_aug": TEXT}, golden_state(loss), log_scale=SCALE, epoch=1)
    np.testing.assert_allclose(out.value, GOLDEN["loss"][0], rtol=1e-6)


@pytest.mark.parametrize("field", ["pool_size", "every"])
def test_sizes_are_checked(field):
    with pytest.raises(UserError, match=f"{field}=0: expected a positive whole number"):
        losses.get("roclip", **{field: 0})


def mesh_with(*shape):
    devices = jax.devices()[: shape[0] * shape[1]]
    return jax.make_mesh(
        shape, sharding.BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
@pytest.mark.parametrize("options", [{}, {"two_way": True, "update_always": True}])
def test_the_pool_is_split_and_written_in_place_by_one_program(shape, options):
    loss = losses.get("roclip", pool_size=9000, **options)
    mesh = mesh_with(*shape)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(now, image, text, epoch):
        def value(image, text):
            out = call(loss, now, image, text, epoch)
            return out.value, out.state

        return jax.grad(value, (0, 1), has_aux=True)(image, text)

    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, sharding.batch_spec())
        views = jax.device_put((IMAGE, TEXT), split)
        now = loss.init_state(jax.random.key(0), DIM)
        now = now._replace(pointer=jax.device_put(now.pointer, sharding.replicated(mesh)))
        now = jax.tree.map(lambda x: jax.device_put(x, split) if x.ndim else x, now)
        rows = 9216 // mesh.size
        assert {part.data.shape for part in now.pool.addressable_shards} == {(rows, DIM)}
        program = advance.lower(now, *views, jnp.asarray(1)).compile().as_text()
        # A copy of the pool in each step would cost more than all that is done with it.
        assert not re.findall(rf"= f32\[{rows},{DIM}\]\S* copy\(", program)
        assert re.findall(rf"= f32\[{rows},{DIM}\]\S* scatter\(", program)
        pointers = []
        for epoch in (1, 1, 2, 2, 3):
            _, now = advance(now, *views, jnp.asarray(epoch))
            pointers.append(int(now.pointer))
        assert advance._cache_size() == 1
    batches = np.arange(1, 6) if options else np.array([0, 0, 1, 2, 2])
    assert pointers == (BATCH * batches).tolist()


def test_a_run_is_the_same_on_any_mesh_and_resumes_on_another(tmp_path):
    loss = losses.get("roclip", pool_size=100)
    ends = []
    for shape in ((1, 1), (2, 4)):
        mesh = mesh_with(*shape)
        tx = optax.sgd(0.1)
        now = state.create(CLIP, loss, tx, 0, mesh)
        abstract = checkpoint.abstract_of(now)
        train_step = step.make_step(CLIP, loss, tx, invert, steps_per_epoch=2)
        with jax.set_mesh(mesh):
            for seed in range(4):
                now, metrics = train_step(now, sharding.shard_batch(mesh, batch_of(16, seed=seed)))
        assert train_step._cache_size() == 1
        ends.append((float(metrics["loss"]), now.loss_state))
        if shape == (1, 1):
            writer = checkpoint.Checkpoints(tmp_path / "c", {})
            writer.save(now)
            writer.close()
    (value_1, one), (value_8, eight) = ends
    assert value_8 == pytest.approx(value_1, rel=1e-4)
    np.testing.assert_allclose(eight.pool, one.pool, atol=1e-4)
    assert int(one.pointer) == int(eight.pointer) == 32
    reader = checkpoint.Checkpoints(tmp_path / "c", {})
    restored = reader.restore(abstract)
    reader.close()
    np.testing.assert_array_equal(restored.loss_state.pool, one.pool)
    assert restored.loss_state.pool.sharding == abstract.loss_state.pool.sharding
    assert len(restored.loss_state.pool.sharding.device_set) == 8


def step_flops(loss, batch):
    clip = models.get("ViT-B/32")
    tx = optimizer.make_optimizer(lambda _: 1e-3, weight_decay=0.1)

    def fresh():
        params = clip.init(jax.random.key(0))
        return state.TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            loss_state=loss.init_state(jax.random.key(0), clip.config.embed_dim),
            reference=(),
            rng=jax.random.key_data(jax.random.key(0)),
        )

    views = {
        "image": jax.ShapeDtypeStruct((batch, 224, 224, 3), np.uint8),
        "text": jax.ShapeDtypeStruct((batch, 77), np.int32),
    }
    train_step = step.make_step(clip, loss, tx, invert, steps_per_epoch=100)
    return flops.count(train_step, jax.eval_shape(fresh), views)


def test_the_pool_costs_less_than_a_tenth_of_a_step():
    plain = step_flops(losses.get("clip"), 1024)
    pooled = step_flops(losses.get("roclip", pool_size=65_536), 1024)
    # Forward and backward of both towers: about 14.5 billion a pair, three times.
    assert plain == pytest.approx(3 * 14.5e9 * 1024, rel=0.05)
    assert pooled - plain >= 2 * 1024 * 65_536 * 512
    assert pooled <= 1.10 * plain
