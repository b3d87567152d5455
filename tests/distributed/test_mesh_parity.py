"""Four devices compute what one does, whichever axis of the mesh splits the work."""

from functools import cache

import grain
import jax
import numpy as np
import pytest

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import abstract_like, build_mesh, make_mesh, param_shardings, put_batch
from calce_jax.inference.predict_step import make_predict
from calce_jax.training.state import TrainState, create_train_state
from tests.helpers import tiny_model
from tests.helpers.tiny_model import OPTIMIZER, TRAIN_STEPS, compile_tiny_train_step

# float32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# data, fsdp, tensor
MESHES = {"data": (4, 1, 1), "fsdp": (1, 4, 1), "tensor": (1, 1, 4), "fsdp and tensor": (1, 2, 2)}
BATCHES = [tiny_model.make_batch((8, 5, 3, 6), seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def model():
    graph, trainable, frozen = tiny_model.make_model()
    return graph, jax.device_get(trainable), jax.device_get(frozen)


class Devices:
    """The training step and the prediction on one mesh."""

    def __init__(self, model, mesh):
        self.mesh = mesh
        graph, self._trainable, frozen = model
        self._frozen = self._place(frozen)
        self._step = compile_tiny_train_step(graph, self.fresh())
        self._predict = jax.jit(make_predict(graph, TRAIN_STEPS))

    def _place(self, tree):
        return jax.device_put(tree, param_shardings(tree, self.mesh))

    def fresh(self) -> TrainState:
        """Return the first state."""
        return self._place(jax.device_get(create_train_state(self._trainable, OPTIMIZER)))

    def train(self, state, batch) -> tuple[TrainState, dict]:
        with jax.set_mesh(self.mesh):
            return self._step(state, self._frozen, put_batch(batch, self.mesh), jax.random.key(3))

    def predict(self, batch):
        with jax.set_mesh(self.mesh):
            return jax.device_get(
                self._predict(self._place(self._trainable), self._frozen, put_batch(batch, self.mesh))
            )


def trained(devices):
    """Take both micro-steps; return their metrics, the state in between, and the last one."""
    between, measured = devices.train(devices.fresh(), BATCHES[0])
    # The next step donates this state.
    kept = jax.device_get(between)
    last, also = devices.train(between, BATCHES[1])
    return jax.device_get([measured, also]), kept, last


@pytest.fixture(scope="module")
def single_device(model):
    """Results of a single device."""
    devices = Devices(model, make_mesh("single"))
    return devices.predict(BATCHES[0]), *trained(devices)


def assert_close(here, there):
    there = named_leaves(there)
    for name, leaf in named_leaves(here).items():
        np.testing.assert_allclose(leaf, there[name], **CLOSE, err_msg=name)


@pytest.fixture(scope="module")
def split(model):
    """Return a cached function from the name of a mesh to its `Devices`."""
    return cache(lambda name: Devices(model, build_mesh(MESHES[name], jax.devices())))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("data", marks=pytest.mark.release),
        pytest.param("fsdp", marks=pytest.mark.release),
        pytest.param("tensor", marks=pytest.mark.release),
        "fsdp and tensor",
    ],
)
def test_answers_loss_gradients_and_step_are_those_of_one_device(name, split, single_device):
    devices, (answers, measured, between, last) = split(name), single_device
    here = devices.predict(BATCHES[0])
    np.testing.assert_array_equal(here.answers.tokens, answers.answers.tokens)
    np.testing.assert_array_equal(
        here.prompt_selection.frame_plan.frame_index, answers.prompt_selection.frame_plan.frame_index
    )
    np.testing.assert_allclose(here.answers.score, answers.answers.score, **CLOSE)

    measured_here, between_here, last_here = trained(devices)
    for mine, theirs in zip(measured_here, measured, strict=True):
        assert_close(mine, theirs)
    gradients = named_leaves(between.opt_state.acc_grads)
    assert min(np.abs(gradient).max() for gradient in gradients.values()) > 1e-4
    assert_close(between_here.opt_state.acc_grads, between.opt_state.acc_grads)
    assert_close(last_here, last)
    moved = named_leaves(
        jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(last.trainable), between.trainable)
    )
    assert min(moved.values()) > 1e-3

    # The optimizer has arrays for the trainables single_device, with their shardings.
    places = {name: leaf.sharding for name, leaf in named_leaves(last_here.trainable).items()}
    adam = last_here.opt_state.inner_opt_state[0]
    for part in (adam.mu, adam.nu, last_here.opt_state.acc_grads):
        assert {name: leaf.sharding for name, leaf in named_leaves(part).items()} == places
    whole = sum(leaf.size for leaf in jax.tree.leaves(last_here.opt_state) if leaf.ndim)
    assert whole == 3 * sum(leaf.size for leaf in jax.tree.leaves(last_here.trainable))


@pytest.mark.release
def test_a_checkpoint_of_one_mesh_goes_on_on_another(split, single_device, tmp_path):
    before, after = split("fsdp and tensor"), split("data")
    state, _ = before.train(before.fresh(), BATCHES[0])
    kept = Checkpoints(tmp_path)
    kept.save(state, iter(grain.MapDataset.range(4).to_iter_dataset()), {})
    kept.close()

    fresh = after.fresh()
    abstract = abstract_like(fresh, param_shardings(fresh, after.mesh))
    again = Checkpoints(tmp_path)
    state = again.restore(1, abstract, iter(grain.MapDataset.range(4).to_iter_dataset()))
    again.close()
    assert state.trainable["t5_proj"]["kernel"].sharding.mesh.shape["data"] == 4
    state, _ = after.train(state, BATCHES[1])
    assert_close(state, single_device[-1])
