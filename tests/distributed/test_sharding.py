import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calce_jax.config import OptimizerConfig
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import (
    ShardingError,
    abstract_like,
    constrain_batch,
    make_mesh,
    param_shardings,
    put_batch,
)
from calce_jax.models import lora
from calce_jax.models.calce_sizes import QFormerConfig, T5Config, VitConfig
from calce_jax.models.qformer import QFormer
from calce_jax.models.t5 import T5
from calce_jax.models.vit import Vit
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import create_train_state


def full_size():
    """The three towers with adapters, as shapes only."""

    def make():
        t5 = T5(T5Config.flan_xl(), rngs=nnx.Rngs(0))
        lora.add_adapters(t5, lora.LoraConfig(), rngs=nnx.Rngs(0))
        towers = {
            "vit": Vit(VitConfig.eva_g(), rngs=nnx.Rngs(0)),
            "qformer": QFormer(QFormerConfig.bert_base(), rngs=nnx.Rngs(0)),
            "t5": t5,
        }
        return {name: nnx.state(tower) for name, tower in towers.items()}

    return jax.eval_shape(make)


def test_every_parameter_has_a_rule_and_a_fourth_of_all_is_on_each_device():
    params = full_size()
    shardings = named_leaves(param_shardings(params, make_mesh("a100x4")))
    total = here = 0
    for name, leaf in named_leaves(params).items():
        part = int(np.prod(shardings[name].shard_shape(leaf.shape)))
        assert "blocks" not in name or shardings[name].spec[0] is None
        total, here = total + leaf.size, here + part
    assert total > 4.0e9
    # A fourth, and 1 % for norms, biases, positions and the half of each adapter that only `tensor` splits.
    assert here / total < 0.2525
    assert shardings["t5/encoder/blocks/attention/q/base/kernel"].spec == P(None, "fsdp", "tensor")
    assert shardings["t5/lm_head/base/kernel"].spec == P("fsdp", "tensor")
    assert shardings["qformer/words"].spec == P(None, "fsdp")


def test_an_optimizers_state_lives_where_its_parameters_do():
    params = {"t5_proj": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}}
    optimizer = make_optimizer(OptimizerConfig(accumulate=2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05))
    state = jax.eval_shape(lambda: create_train_state(params, optimizer))
    shardings = named_leaves(param_shardings(state, make_mesh("a100x4")))
    assert shardings["opt_state/inner_opt_state/0/mu/t5_proj/kernel"].spec == P("tensor", "fsdp")
    assert shardings["opt_state/mini_step"].spec == P()
    assert abstract_like(state, param_shardings(state, make_mesh("single"))).step.sharding.mesh.size == 1


def test_parameters_without_a_rule_and_uneven_ones_are_listed():
    params = {
        "t5": {"novel": jax.ShapeDtypeStruct((3, 4), jnp.float32)},
        "wide": {"wi": {"kernel": jax.ShapeDtypeStruct((1001, 1000), jnp.float32)}},
    }
    with pytest.raises(ShardingError) as raised:
        param_shardings(params, make_mesh("a100x4"))
    assert "t5/novel (3, 4): no rule matches" in str(raised.value)
    assert "wide/wi/kernel (1001, 1000): axis 0 of 1001 does not divide into 4 (fsdp)" in str(raised.value)


def test_small_uneven_arrays_stay_whole():
    shardings = param_shardings({"wi": {"kernel": jnp.zeros((5, 4))}}, make_mesh("a100x4"))
    assert shardings["wi"]["kernel"].spec == P()


def test_meshes():
    assert make_mesh("single").shape == {"data": 1, "fsdp": 1, "tensor": 1}
    assert make_mesh("tpu").shape == {"data": 1, "fsdp": 4, "tensor": 1}
    with pytest.raises(ShardingError, match=r"must be one of 'single', 'data', 'a100x4', 'a100x8', 'tpu', got 'gpu'"):
        make_mesh("gpu")
    with pytest.raises(ShardingError, match=r"'a100x4' needs 4 devices, got 2 cpu .*--config.mesh=single"):
        make_mesh("a100x4", jax.devices()[:2])


def test_a_batch_is_split_and_stays_split():
    mesh = make_mesh("a100x4")
    batch = put_batch({"row": np.arange(8), "frames": np.zeros((8, 3), np.uint8)}, mesh)
    assert [shard.data.tolist() for shard in batch["row"].addressable_shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(ShardingError, match=r"config.data.batch: 6 videos do not divide by the 4 devices"):
        put_batch({"row": np.arange(6)}, mesh)

    plain = jnp.arange(8.0)
    assert constrain_batch(plain) is plain
    with jax.set_mesh(mesh):
        split = jax.jit(constrain_batch)(plain)
    assert split.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"))), 1)
