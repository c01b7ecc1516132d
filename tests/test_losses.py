"""What every built-in loss must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from clipdef_jax import losses
from clipdef_jax.errors import UserError

CASES = {
    "clip": ("clip", {}),
    "cleanclip": ("cleanclip", {"clip_weight": 0.5, "inmodal_weight": 2.0}),
    "cleanclip-symmetric": ("cleanclip", {"symmetric": True}),
    "cleanclip-unlearn": ("cleanclip", {"flagged": True, "progressive": 0.05, "unlearn": 0.5}),
    "par": ("par", {}),
    # Epoch 1 is plain with the first, matched with the others.
    "roclip-plain": ("roclip", {"pool_size": 100, "every": 2}),
    "roclip": ("roclip", {"pool_size": 100, "every": 1}),
    "roclip-two-way": ("roclip", {"pool_size": 100, "every": 1, "two_way": True}),
    # Epoch 1 is unimodal with the first, CLIP with the second, divided with the third.
    "safeclip-warmup": ("safeclip", {"pool_size": 100, "warmup": 1}),
    "safeclip-slow": ("safeclip", {"pool_size": 100, "warmup": 0, "slow_weight": 0.5}),
    "safeclip": ("safeclip", {"pool_size": 100, "warmup": 0, "slow": 0, "threshold": 0.5}),
    "supervised": ("supervised", {}),
    "tacleaner": ("tacleaner", {"beta": 0.5}),
    "tacleaner-positive": ("tacleaner", {"negative": False}),
    "tacleaner-negative": ("tacleaner", {"positive": False}),
}
BATCH, DIM, LOG_SCALE = 64, 32, 2.5


@pytest.fixture(params=CASES.values(), ids=CASES, scope="module")
def loss(request):
    name, kwargs = request.param
    return losses.get(name, **kwargs)


@pytest.fixture(scope="module")
def value_and_gradients(loss):
    """The jitted loss with its gradients by embeddings and scale, compiled once for all tests."""
    compiled = jax.jit(jax.value_and_grad(value_of(loss, initial(loss)), (0, 1)))

    def call(views, log_scale):
        smooth, rest = split(views)
        return compiled(smooth, log_scale, rest)

    return call


def embeddings_for(loss, dtype=np.float32):
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(BATCH, DIM))
    made = {}
    for view in loss.views:
        match view:
            case "has_subtext" | "is_flagged":
                made[view] = rng.random(BATCH) < 0.3
            case "label":
                made[view] = rng.integers(-1, DIM, BATCH)
            case "text_neg":
                made[view] = unit(rng.normal(size=(BATCH, 2, DIM)), dtype)
            case _:
                made[view] = unit(centre + rng.normal(size=(BATCH, DIM)), dtype)
    return made


def unit(x, dtype):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


def split(views):
    """Returns what has gradients, and what has none: flags and labels."""
    smooth = {view: x for view, x in views.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return smooth, {view: x for view, x in views.items() if view not in smooth}


def value_of(loss, state):
    def value(smooth, log_scale, rest):
        return loss(smooth | rest, state, log_scale=log_scale, epoch=1).value

    return value


def initial(loss):
    return loss.init_state(jax.random.key(0), DIM)


def assert_trees_close(actual, expected, atol):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=atol), actual, expected)


def test_every_built_in_loss_is_tested_here():
    assert {name for name, _ in CASES.values()} == set(losses.BUILTIN)


def test_output_is_float32_scalars(loss):
    out = loss(embeddings_for(loss), initial(loss), log_scale=LOG_SCALE, epoch=1)
    for number in (out.value, *out.metrics.values()):
        assert number.shape == ()
        assert number.dtype == jnp.float32
    assert 0 < out.value < 10


def test_state_keeps_its_structure(loss):
    def step(state, epoch):
        out = loss(embeddings_for(loss), state, log_scale=LOG_SCALE, epoch=epoch)
        return out.state, out.value

    # scan refuses a carry whose structure, shapes or dtypes change.
    _, values = jax.lax.scan(step, initial(loss), jnp.arange(1, 4))
    assert np.isfinite(values).all()


def test_jit_equals_eager(loss, value_and_gradients):
    embeddings = embeddings_for(loss)
    smooth, rest = split(embeddings)
    eager = jax.value_and_grad(value_of(loss, initial(loss)), (0, 1))(smooth, LOG_SCALE, rest)
    assert_trees_close(value_and_gradients(embeddings, LOG_SCALE), eager, atol=1e-6)


def test_gradients_equal_finite_differences(loss):
    with jax.enable_x64(True):
        embeddings = jax.tree.map(lambda x: jnp.asarray(x[:8]), embeddings_for(loss, np.float64))
        smooth, rest = split(embeddings)
        call = value_of(loss, loss.init_state(jax.random.key(0), DIM))
        check_grads(
            jax.jit(lambda smooth, log_scale: call(smooth, log_scale, rest)),
            (smooth, jnp.asarray(LOG_SCALE)),
            order=1,
            modes=["rev"],
        )


def test_order_of_the_batch_does_not_matter(loss, value_and_gradients):
    embeddings = embeddings_for(loss)
    order = np.random.default_rng(1).permutation(BATCH)
    value, (d_embeddings, d_scale) = value_and_gradients(embeddings, LOG_SCALE)
    shuffled = value_and_gradients({view: x[order] for view, x in embeddings.items()}, LOG_SCALE)
    expected = value, ({view: d[order] for view, d in d_embeddings.items()}, d_scale)
    assert_trees_close(shuffled, expected, atol=1e-6)


def test_bfloat16_embeddings_lose_nothing_more(loss, value_and_gradients):
    smooth, rest = split(embeddings_for(loss))
    rounded = {view: jnp.bfloat16(x) for view, x in smooth.items()}
    exact = {view: jnp.float32(x) for view, x in rounded.items()}
    value, (gradients, _) = value_and_gradients(rounded | rest, LOG_SCALE)
    expected, (expected_gradients, _) = value_and_gradients(exact | rest, LOG_SCALE)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for view, gradient in gradients.items():
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            jnp.float32(gradient), expected_gradients[view], rtol=2**-8, atol=1e-6
        )


def test_devices_do_not_matter(loss, value_and_gradients):
    embeddings = embeddings_for(loss)
    expected = value_and_gradients(embeddings, LOG_SCALE)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        actual = value_and_gradients(jax.device_put(embeddings, sharding), LOG_SCALE)
    assert_trees_close(actual, expected, atol=1e-6)


def test_a_missing_view_is_named(loss):
    embeddings = embeddings_for(loss)
    del embeddings[loss.views[-1]]
    with pytest.raises(ValueError, match=f"'{loss.views[-1]}' is missing"):
        loss(embeddings, initial(loss), log_scale=LOG_SCALE, epoch=1)


def test_differing_batches_are_named_with_both_shapes(loss):
    embeddings = embeddings_for(loss)
    if "text" not in embeddings:
        pytest.skip("reads no captions")
    embeddings["text"] = embeddings["text"][:-1]
    with pytest.raises(ValueError, match=r"'image' has \(64, 32\), 'text' has \(63, 32\)"):
        loss(embeddings, initial(loss), log_scale=LOG_SCALE, epoch=1)


def test_a_view_of_another_rank_is_named_with_its_shape(loss):
    embeddings = embeddings_for(loss)
    if "image" not in embeddings:
        pytest.skip("reads logits")
    embeddings["image"] = embeddings["image"][0]
    with pytest.raises(ValueError, match=r"'image' must be \(batch, dim\), got shape \(32,\)"):
        loss(embeddings, initial(loss), log_scale=LOG_SCALE, epoch=1)


def test_equal_arguments_make_equal_losses(loss):
    # jit may then take a loss as a static argument without compiling twice.
    again = type(loss)(**vars(loss))
    assert again == loss
    assert hash(again) == hash(loss)


def test_unknown_names_and_arguments_are_user_errors():
    with pytest.raises(UserError, match="did you mean 'cleanclip'"):
        losses.get("cleanclp")
    with pytest.raises(UserError, match="inmodal_wait"):
        losses.get("cleanclip", inmodal_wait=1.0)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cleanclip", {"progressive": 1.0}, "progressive=1.0: expected a share"),
        ("cleanclip", {"unlearn": 1.0}, "has nothing to unlearn"),
        ("tacleaner", {"fraction": 0.0}, "fraction=0.0: expected above 0"),
        ("tacleaner", {"negatives": 0}, "negatives=0: expected a positive whole number"),
    ],
)
def test_values_that_make_no_loss_are_user_errors(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        losses.get(name, **kwargs)
