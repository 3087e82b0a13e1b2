"""Several devices: shard_map and explicit axes are local, a plain jit is right (after an all-gather)."""

import pytest

pytest.importorskip("jax", reason="JAX is not installed: pip install 'rmsnorm[jax]'")

SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import rmsnorm.jax as rj
from rmsnorm import reference

rng = np.random.default_rng(20191016)
x, dy = rng.standard_normal((2, 8, 3, 33)).astype(np.float32)
g = rng.standard_normal(33).astype(np.float32)
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
split, everywhere = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
sharded = jax.device_put(x, split), jax.device_put(g, everywhere), jax.device_put(dy, split)

y = reference.rms_norm(x, g, eps=1e-5)
gradients = reference.rms_norm_vjp(dy, x, g, eps=1e-5)[:2]
forward = reference.rms_norm_jvp(dy, x, g, g, eps=1e-5)

def close(found, expected):
    assert np.max(np.abs(found - expected)) <= 32 * 2**-24 * np.max(np.abs(expected)), np.max(np.abs(found - expected))

def norm(x, g):
    return rj.rms_norm(x, g, eps=1e-5)

def grad(norm):
    return jax.grad(lambda x, g, dy: jnp.sum(norm(x, g) * dy), (0, 1))

def compiled(function, *args):
    found = jax.jit(function).lower(*args).compile()
    return found(*args), found.as_text()

def mapped(function, ins, outs):
    return jax.shard_map(function, mesh=mesh, in_specs=ins, out_specs=outs)

found, text = compiled(norm, *sharded[:2])
close(found, y)
assert "all-gather" in text
for a, b in zip(compiled(grad(norm), *sharded)[0], gradients):
    close(a, b)

local = mapped(norm, (P("d"), P()), P("d"))
found, text = compiled(local, *sharded[:2])
close(found, y)
assert "all-gather" not in text
assert found.sharding.is_equivalent_to(split, found.ndim)
inner = mapped(grad(norm), (P("d"), P(), P("d")), (P("d"), P()))
for function in (grad(local), inner):  # dweight is summed over the devices
    found, text = compiled(function, *sharded)
    assert "all-reduce" in text and "all-gather" not in text
    for a, b in zip(found, gradients):
        close(a, b)
tangent = mapped(lambda x, g, dx: jax.jvp(norm, (x, g), (dx, g))[1], (P("d"), P(), P("d")), P("d"))
close(compiled(tangent, *sharded)[0], forward)
each = mapped(lambda x, dx: rj.add_rms_norm(x, dx, jnp.asarray(g), eps=1e-5), (P("d"), P()), (P("d"), P("d")))
close(compiled(each, sharded[0], dy[:2])[0][0], reference.rms_norm(x + np.tile(dy[:2], (4, 1, 1)), g, eps=1e-5))

explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(explicit):
    own, d, gain = jax.device_put(x, P("d")), jax.device_put(dy, P("d")), jnp.asarray(g)
    found, text = compiled(norm, own, gain)
    close(found, y)
    assert "all-gather" not in text
    assert jax.typeof(found).sharding.spec == jax.typeof(own).sharding.spec
    found, text = compiled(grad(norm), own, gain, d)
    assert "all-reduce" in text and "all-gather" not in text
    for a, b in zip(found, gradients):
        close(a, b)
    total, s = jax.jit(lambda x, r: rj.add_rms_norm(x, r, gain, eps=1e-5))(own, d)
    close(total, reference.rms_norm(x + dy, g, eps=1e-5))
    close(jax.jit(jax.shard_map(norm, in_specs=(P("d"), P()), out_specs=P("d")))(own, g), y)
    gains, moved = rng.standard_normal((4, 33)).astype(np.float32), x.transpose(1, 0, 2)[:, :4]
    moved_own = jax.device_put(moved, P(None, "d"))  # each device has a head, and takes its gain
    close(jax.jit(norm)(moved_own, gains), reference.rms_norm(moved, gains, eps=1e-5))
    found = jax.jit(jax.grad(lambda g: jnp.sum(norm(moved_own, g) * moved_own)))(jnp.asarray(gains))
    expected = [reference.rms_norm_vjp(moved[:, h], moved[:, h], gains[h], eps=1e-5)[1] for h in range(4)]
    close(found, np.stack(expected))
    for wrong in (
        lambda: rj.rms_norm(own, axis=0),
        lambda: rj.add_rms_norm(own, jnp.asarray(dy)),
        lambda: jax.vmap(rj.rms_norm)(own),
        lambda: rj.rms_norm(jnp.ones((3, 8)), jax.device_put(np.ones(8, np.float32), P("d"))),
    ):
        try:
            wrong()
        except NotImplementedError as error:
            assert "got x: float32[" in str(error), error
        else:
            raise AssertionError("must be refused")
"""


def test_four_devices(run_python):
    """As docs/jax.md says."""
    run_python(SHARDED, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")
