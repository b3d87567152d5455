"""Our side of the comparison, in three parts, each of which holds the weights of its towers alone.

Each reads the converted weights and writes arrays, float32, that `theirs.py` writes under the same names. Programs are
compiled as those of the commands are.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.full_size.material import first_batch, first_frames, load_arrays, save_arrays
from benchmarks.full_size.workspace import Dtype, Workspace
from benchmarks.models import MINIMAL_QFORMER, MINIMAL_T5, MINIMAL_VIT
from benchmarks.prediction import prompt_indices
from calce_jax.batch import Batch
from calce_jax.checkpoints.convert import calce
from calce_jax.checkpoints.convert.mapping import add_prefix
from calce_jax.checkpoints.convert.sources import open_sources
from calce_jax.checkpoints.convert.state_dict import lazy_state_dict
from calce_jax.checkpoints.convert.weights import as_lazy
from calce_jax.distributed.compiler_options import options_for
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.inference.prediction import step_config
from calce_jax.models.beam_search import beam_search
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.calce import Calce, answer_loss, shift_right
from calce_jax.models.calce_sizes import CalceConfig

# Enough to tell two searches apart; random weights hardly ever end an answer.
ANSWER_TOKENS, BEAMS = 24, 5


def compute_vision(workspace: Workspace, dtype: Dtype) -> None:
    """Write "tokens" (T P D), "queries" (T Q W) and, in float32, the prompt: its layout and "embeddings" (L E)."""
    full = workspace.model_config(dtype)
    model = _load(workspace, replace(full, lora=None, t5=replace(MINIMAL_T5, width=full.t5.width, vocab=full.t5.vocab)))
    batch = first_batch(workspace)
    graph, params = nnx.split(model)

    @partial(jax.jit, compiler_options=options_for("cpu", 1, dtype))
    def encode(params: nnx.State, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        tokens = model.encode_frames(frames)
        return tokens, model.frame_queries(tokens)

    tokens, queries = encode(params, first_frames(workspace, dtype)[None])
    arrays = {"tokens": _host(tokens[0]), "queries": _host(queries[0])}
    if dtype == "float32":
        arrays |= _prompt(workspace, model, batch, tokens)
    save_arrays(workspace, f"ours_vision_{dtype}", arrays)


def compute_gradients(workspace: Workspace, dtype: Dtype) -> None:
    """Write "states" (L E) of T5's encoder, "loss" (), and "gradient:NAME" of every adapter with its name in a .pth."""
    full = workspace.model_config(dtype)
    model = _load(workspace, replace(full, vit=MINIMAL_VIT, qformer=_minimal_qformer(full)))
    graph, adapters, frozen = nnx.split(model.t5, lambda path, _: path[-1] in ("a", "b"), ...)
    prompt = load_arrays(workspace, "ours_vision_float32")
    x, labels = jnp.asarray(prompt["embeddings"], dtype)[None], jnp.asarray(prompt["labels"])[None]
    mask = jnp.ones(x.shape[:2], bool)

    @partial(jax.jit, compiler_options=options_for("cpu", 1, dtype))
    def compute(adapters: nnx.State, frozen: nnx.State) -> tuple[tuple[jax.Array, jax.Array], nnx.State]:
        def loss(adapters: nnx.State) -> tuple[jax.Array, jax.Array]:
            t5 = nnx.merge(graph, adapters, frozen)
            states = t5.encode(x, mask, remat="full")
            logits = t5.decode(shift_right(labels), states, mask, remat="full")
            return answer_loss(logits, labels).mean(), states

        return jax.value_and_grad(loss, has_aux=True)(adapters)

    (loss, states), gradients = compute(adapters, frozen)
    leaves = {f"t5/{name}": as_lazy(_host(leaf)) for name, leaf in named_leaves(gradients).items()}
    rows = add_prefix(calce.adapter_rows(), "", "t5/")
    named = {f"gradient:{name}": leaf.read() for name, leaf in lazy_state_dict(rows, leaves).items()}
    save_arrays(workspace, f"ours_gradients_{dtype}", {"states": _host(states[0]), "loss": _host(loss), **named})


def compute_beams(workspace: Workspace, dtype: Dtype) -> None:
    """Write "tokens" (K M) and "log_probability" (K,) of a search over the states that `compute_gradients` wrote."""
    full = workspace.model_config(dtype)
    small_encoder = replace(full.t5, encoder_depth=1)
    model = _load(workspace, replace(full, vit=MINIMAL_VIT, qformer=_minimal_qformer(full), t5=small_encoder))
    graph, params = nnx.split(model.t5)
    memory = jnp.asarray(load_arrays(workspace, f"ours_gradients_{dtype}")["states"], dtype)[None]

    @partial(jax.jit, compiler_options=options_for("cpu", 1, dtype))
    def search(params: nnx.State, memory: jax.Array) -> BeamSearchOutput:
        mask = jnp.ones(memory.shape[:2], bool)
        return beam_search(nnx.merge(graph, params), memory, mask, num_beams=BEAMS, max_length=ANSWER_TOKENS)

    found = search(params, memory)
    save_arrays(
        workspace,
        f"ours_beams_{dtype}",
        {"tokens": np.asarray(found.tokens[0]), "log_probability": _host(found.log_probability[0])},
    )


def _prompt(workspace: Workspace, model: Calce, batch: Batch, tokens: jax.Array) -> dict[str, np.ndarray]:
    """Return the prompt of a batch of one query, without padding: where each position comes from, and its embedding."""
    graph, params = nnx.split(model)
    selection_config = step_config(workspace.run_config(1), ANSWER_TOKENS).selection
    selection = jax.jit(lambda params, tokens: nnx.merge(graph, params).select(tokens, batch, selection_config))(
        params, tokens
    )
    length = int(selection.prompt_lengths[0])
    embeddings, _ = jax.jit(
        lambda params, tokens: nnx.merge(graph, params).embed_prompt(tokens, batch, selection, length)
    )(params, tokens)
    labels = np.asarray(batch.labels[0])
    indices = prompt_indices(model, batch, selection, length)
    return {
        "embeddings": _host(embeddings[0]),
        "labels": labels[labels != 0],
        "is_text": indices.is_text[0],
        "token_id": indices.token_id[0],
        "frame_index": indices.frame_index[0],
    }


def _minimal_qformer(full: CalceConfig) -> object:
    return replace(MINIMAL_QFORMER, image_width=MINIMAL_VIT.width)


def _load(workspace: Workspace, model_config: CalceConfig) -> Calce:
    """Return a model with the weights of stage 1 for all parameters that have the shape they have at full size."""
    weights = open_sources(
        [("base", workspace.base), ("calce", workspace.checkpoint(1))], workspace.model_config(), seed=0
    )
    arrays = {**weights.base, **weights.trained}
    model = nnx.eval_shape(lambda: Calce(model_config, rngs=nnx.Rngs(0)))
    state, leaves = nnx.state(model), {}
    for name, leaf in named_leaves(state).items():
        stored = arrays[name.replace("/base/", "/")]
        # Parts that are computed elsewhere are minimal here, and are not used.
        array = stored.read() if stored.shape == leaf.shape else np.zeros(leaf.shape, np.float32)
        is_trained = name.replace("/base/", "/") in weights.trained
        leaves[name] = jnp.asarray(array, jnp.float32 if is_trained else model_config.dtype)
    nnx.update(model, with_leaves(state, leaves))
    return model


def _host(array: jax.Array) -> np.ndarray:
    return np.asarray(array, np.float32)
