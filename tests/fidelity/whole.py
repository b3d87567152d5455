"""13: the whole model, from video and query to loss, gradients, one step of the optimizer, and answers.

The original pads the prompts of a batch in the middle, which shifts the relative positions in T5. To compare batches,
our prompts are padded as the recorded masks are; single samples have no padding and need no such step.
"""

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert.calce import key_mapping
from calce_jax.checkpoints.convert.state_dict import to_torch
from calce_jax.config import OptimizerConfig
from calce_jax.distributed.param_names import Params, named_leaves, with_leaves
from calce_jax.models.calce import Calce, answer_loss, shift_right
from calce_jax.models.selection import PromptSelection, SelectionConfig
from calce_jax.models.structure import split_params
from calce_jax.moments import windows_reference
from calce_jax.text.prompt import decode_answer
from calce_jax.text.tokenizers import load_bert, load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import apply_gradients, create_train_state
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.language import SCORES, as_sequences, search_answers
from tests.fidelity.report import Group
from tests.fidelity.stage import Stage, load_batch, load_calce, recorded_calls, select_prompts

# float32 sums in another order, through all three towers.
ACTIVATIONS, LOGITS = 2e-5, 1e-4
GRADIENTS = 5e-4  # and back, with cancellation in the sums over positions
# AdamW moves every weight by about the learning rate, however small its gradient. Where that is nearly 0, rounding
# decides the sign of the step; those weights are left out.
STEP_TOLERANCE, NO_GRADIENT = 1e-5, 1e-6


def end_to_end(folder: RecordingFolder) -> Iterator[Group]:
    """Compare all results of both stages on a batch."""
    for stage in _load_stages(folder):
        yield from _compare_stage(stage)


def _load_stages(folder: RecordingFolder) -> list[Stage]:
    arrays, meta = folder.arrays("13_e2e"), folder.json("13_e2e_meta")
    tensors = folder.arrays("13_e2e_state_dict")
    model = load_calce(dict(tensors.with_prefix("")), folder.settings("13_e2e"))
    tokenizers = load_t5(folder.find_shared("tokenizers", "t5")), load_bert(folder.find_shared("tokenizers", "bert"))
    video = np.moveaxis(arrays["video"], 2, -1)
    tokens = nnx.jit(lambda model, frames: model.vit(frames))(model, jnp.asarray(video.reshape(-1, *video.shape[2:])))
    vision_tokens = tokens.reshape(*video.shape[:2], *tokens.shape[1:])

    stages = []
    for number in sorted(int(name_match[1]) for name in meta if (name_match := re.fullmatch(r"stage(\d)", name))):
        stage_meta = meta[f"stage{number}"]
        selection = SelectionConfig(
            stage=number,  # pyright: ignore[reportArgumentType]
            clusters=stage_meta["num_clusters"],
            dilation=stage_meta["bias1"],
            filter_dilation=stage_meta["bias2"],
            behaviour="reference",
        )
        batch = load_batch(
            stage_meta,
            arrays[f"s{number}_timestamps"],
            answer_tokens=arrays[f"s{number}_labels"].shape[1],
            stage=number,
            tokenizers=tokenizers,
            model=model,
        )
        stages.append(Stage(number, stage_meta, arrays, model, vision_tokens, batch, selection, tokenizers[0]))
    return stages


def _compare_stage(stage: Stage) -> Iterator[Group]:
    n, count = stage.number, len(stage.batch.example_index)
    selection = Group(f"13_e2e/stage {n}: key frames")
    yield selection
    prompt_selections = {}
    for when in ("forward", "generate"):
        calls = recorded_calls(stage.meta, f"key_nonkey_{when}", n)
        prompt_selection, plans = select_prompts(stage, stage.meta.get(f"compress_mask_draws_{when}") or [], calls[-1])
        prompt_selections[when] = prompt_selection
        for call, expected in enumerate(calls):
            for i in range(count):
                with selection.case(f"{when}, call {call}, sample {i}") as case:
                    case.same(plans[i], expected[i])

    embedded = Group(f"13_e2e/stage {n}: prompts", ACTIVATIONS)
    predicted, loss = Group(f"13_e2e/stage {n}: logits", LOGITS), Group(f"13_e2e/stage {n}: loss", ACTIVATIONS)
    gradients = Group(f"13_e2e/stage {n}: gradients", GRADIENTS)
    stepped = Group(f"13_e2e/stage {n}: AdamW step", STEP_TOLERANCE)
    yield from (embedded, predicted, loss, gradients, stepped)

    with embedded.case("ln_vision") as case:
        norm = stage.model.ln_vision(stage.vision_tokens.reshape(-1, *stage.vision_tokens.shape[2:]))
        case.close(norm, stage.recorded("ln_vision_out"))
    mask = stage.recorded("attention_mask") != 0
    for i, needed in enumerate(np.asarray(prompt_selections["forward"].prompt_lengths).tolist()):
        with embedded.case(f"length of prompt {i}") as case:
            case.same(needed, int(mask[i].sum()))

    # Forward and backward pass over the trainable parameters.
    graph, trainable, frozen = split_params(stage.model, "float32")
    run = partial(
        _forward, graph=graph, frozen=frozen, stage=stage, prompt_selection=prompt_selections["forward"], mask=mask
    )
    (total, (x, logits)), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(trainable)
    for i in range(count):
        with embedded.case(f"prompt {i}") as case:
            case.close(np.asarray(x)[i][mask[i]], stage.recorded("inputs_embeds")[i][mask[i]])
    _compare_logits(predicted, stage, np.asarray(logits))
    with loss.case("loss") as case:
        case.close(total, stage.recorded("loss"))
        case.close(total, stage.meta["loss"])

    # Gradients of all trained parameters, and the parameters after one step.
    ours = _by_torch_name(stage.model, grads, trainable)
    _compare_gradients(gradients, stage, ours)
    adamw = stage.meta["adamw"]
    optimizer = make_optimizer(
        OptimizerConfig(1, *adamw["betas"], eps=adamw["eps"], weight_decay=adamw["weight_decay"]), "reference"
    )
    after = jax.jit(
        lambda t, s: apply_gradients(create_train_state(t, optimizer), s, optimizer, jnp.float32(adamw["lr"]))
    )
    _compare_step(stepped, stage, _by_torch_name(stage.model, after(trainable, grads).trainable, trainable), ours)

    yield from _compare_answers(stage, prompt_selections["generate"])


def _forward(
    trainable: Params,
    *,
    graph: Any,
    frozen: Params,
    stage: Stage,
    prompt_selection: PromptSelection,
    mask: np.ndarray,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return (loss, (prompts, logits)) of a batch, the loss averaged over all tokens as in the original."""
    model: Calce = nnx.merge(graph, trainable, frozen)
    x = _align_prompts(model, stage, prompt_selection, mask)
    prompt_mask, labels = jnp.asarray(mask), stage.batch.labels
    logits = model.t5.decode(shift_right(labels), model.t5.encode(x, prompt_mask), prompt_mask)
    tokens = (labels != 0).sum(axis=1).astype(jnp.float32)
    return (answer_loss(logits, labels) * tokens).sum() / tokens.sum(), (x, logits)


def _align_prompts(model: Calce, stage: Stage, prompt_selection: PromptSelection, mask: np.ndarray) -> jax.Array:
    """Return our prompts, moved to the positions of the original's mask."""
    x, _ = model.embed_prompt(stage.vision_tokens, stage.batch, prompt_selection, mask.shape[1])
    position = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    moved = jnp.take_along_axis(x, jnp.asarray(position)[:, :, None], axis=1)
    return jnp.where(jnp.asarray(mask)[:, :, None], moved, jnp.zeros_like(moved))


def _compare_logits(group: Group, stage: Stage, logits: np.ndarray) -> None:
    labels = np.asarray(stage.batch.labels)
    total = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    for i, answer_mask in enumerate(labels != 0):
        with group.case(f"answer {i}") as case:
            case.same(labels[i][answer_mask], stage.recorded("labels")[i][answer_mask], "labels")
            first = stage.recorded_like(r"logits_first\d+")[i][answer_mask]
            case.close(logits[i][answer_mask][:, : first.shape[1]], first)
            case.close(total[i][answer_mask], stage.recorded("logits_logsumexp")[i][answer_mask])
            case.same(logits[i][answer_mask].argmax(axis=-1), stage.recorded("argmax")[i][answer_mask], "most probable")


def _by_torch_name(model: Calce, trained: Params, trainable: Params) -> dict[str, np.ndarray]:
    """Return trained parameters, or their gradients, with the original's names and layout."""
    state = nnx.state(model)
    leaves = {name: np.zeros(leaf.shape, np.float32) for name, leaf in named_leaves(state).items()}
    marks = {name: np.ones(leaf.shape, np.float32) for name, leaf in named_leaves(trainable).items()}
    mapping = key_mapping(lora=True, cross_attention_frequency=model.qformer.config.cross_attention_frequency)
    marked = to_torch(mapping, with_leaves(state, leaves | marks))
    trained_leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(trained).items()}
    tensors = to_torch(mapping, with_leaves(state, leaves | trained_leaves))
    return {name: tensors[name] for name, mark in marked.items() if mark.any()}


def _compare_gradients(group: Group, stage: Stage, ours: dict[str, np.ndarray]) -> None:
    with group.case("names") as case:
        case.same(sorted(ours), sorted({*stage.names("grad"), *stage.names("grad_rows")}))
    for name in stage.names("grad"):
        with group.case(name) as case:
            case.close(ours[name], stage.recorded(f"grad/{name}"))
    for name in stage.names("grad_rows"):
        with group.case(name) as case:
            case.close(ours[name][stage.recorded(f"grad_rows_ids/{name}")], stage.recorded(f"grad_rows/{name}"))
            case.close(np.linalg.norm(ours[name]), stage.recorded(f"grad_norm/{name}"), "norm")
            # The sum nearly cancels.
            grad = ours[name].astype(np.float64)
            case.close(grad.sum(), stage.recorded(f"grad_sum/{name}"), "sum", scale=float(np.abs(grad).sum()))


def _compare_step(group: Group, stage: Stage, ours: dict[str, np.ndarray], grads: dict[str, np.ndarray]) -> None:
    num_left_out = 0
    for kind in ("adamw", "adamw_rows"):
        for name in stage.names(kind):
            with group.case(name) as case:
                rows = stage.recorded(f"grad_rows_ids/{name}") if kind == "adamw_rows" else slice(None)
                has_gradient = np.abs(grads[name][rows]) > NO_GRADIENT
                num_left_out += int((~has_gradient).sum())
                case.close(ours[name][rows][has_gradient], stage.recorded(f"{kind}/{name}")[has_gradient])
    for name in stage.names("adamw_sum"):
        undecided = int((np.abs(grads[name]) <= NO_GRADIENT).sum())
        params, expected = ours[name].astype(np.float64), stage.recorded(f"adamw_sum/{name}")
        with group.case(f"sum of {name}", tied=undecided > 0) as case:
            case.close(params.sum(), expected, scale=float(np.abs(params).sum()))
    group.add_note(f"apart: {num_left_out} weights whose gradient is below {NO_GRADIENT:g}, so that rounding decides")


def _compare_answers(stage: Stage, prompt_selection: PromptSelection) -> Iterator[Group]:
    n, count, generate_kwargs = stage.number, len(stage.batch.example_index), stage.meta["generate_kwargs"]
    mask = stage.recorded("gen_attention_mask") != 0
    t5 = stage.model.t5

    @nnx.jit
    def encoded(model: Calce) -> tuple[jax.Array, jax.Array]:
        x = _align_prompts(model, stage, prompt_selection, mask)
        return x, model.t5.encode(x, jnp.asarray(mask))

    prompts = Group(f"13_e2e/stage {n}: prompts to answer", ACTIVATIONS)
    yield prompts
    x, memory = encoded(stage.model)
    for i in range(count):
        with prompts.case(f"prompt {i}") as case:
            case.close(np.asarray(x)[i][mask[i]], stage.recorded("gen_inputs_embeds")[i][mask[i]])

    greedy, best = Group(f"13_e2e/stage {n}: greedy"), Group(f"13_e2e/stage {n}: best answer", SCORES, is_absolute=True)
    top, windows = Group(f"13_e2e/stage {n}: all beams", SCORES, is_absolute=True), Group(f"13_e2e/stage {n}: windows")
    yield from (greedy, best, top, windows)
    length, min_length, prompt_mask = (
        generate_kwargs["max_new_tokens"],
        generate_kwargs["min_length"],
        jnp.asarray(mask),
    )
    with greedy.case("answers") as case:
        ours = search_answers(t5, memory, prompt_mask, beams=1, length=length, min_length=min_length)
        expected = stage.recorded("greedy_sequences")
        case.same(as_sequences(ours.tokens[:, 0], expected.shape[1]), expected)
    ours = search_answers(
        t5, memory, prompt_mask, beams=generate_kwargs["num_beams"], length=length, min_length=min_length
    )
    tokens, scores = np.asarray(ours.tokens), np.asarray(ours.score)
    for i in range(count):
        with best.case(f"sample {i}") as case:
            expected = stage.recorded("gen_sequences")
            case.same(as_sequences(tokens[:, 0], expected.shape[1])[i], expected[i])
            case.close(scores[i, 0], stage.recorded("gen_scores")[i], "score")
        with top.case(f"sample {i}") as case:
            expected = stage.recorded_like(r"gen_top\d+_sequences")
            num_recorded = len(expected) // count
            beam_rows = slice(i * num_recorded, (i + 1) * num_recorded)
            case.same(as_sequences(tokens[i, :num_recorded], expected.shape[1]), expected[beam_rows])
            case.close(scores[i, :num_recorded], stage.recorded_like(r"gen_top\d+_scores")[beam_rows], "scores")
        with windows.case(f"sample {i}") as case:
            answer = decode_answer(stage.tokenizer, tokens[i, 0])
            case.same(answer, stage.meta["raw_pred_windows"][i], "answer")
            case.same(
                windows_reference.repair_windows(answer, stage.meta["duration"][i]),
                stage.meta["pred_windows"][i],
                "windows",
            )


def alone(folder: RecordingFolder) -> Iterator[Group]:
    """Compare loss and best answer of each sample of the batch alone, without the original's padding."""
    arrays, meta = folder.arrays("13_e2e_b1"), folder.json("13_e2e_b1_meta")
    by_number = {stage.number: stage for stage in _load_stages(folder)}
    loss, best = Group("13_e2e_b1/loss", ACTIVATIONS), Group("13_e2e_b1/best answer", SCORES, is_absolute=True)
    yield from (loss, best)
    max_length = max(arrays[name].shape[1] for name in arrays if name.endswith("_attention_mask"))
    for name in meta:
        name_match = re.fullmatch(r"s(\d)_(\d+)", name)
        if not name_match:
            loss.add_note(f"not compared: {name}")
            continue
        stage, i = by_number[int(name_match[1])], int(name_match[2])
        expected_plan = recorded_calls(stage.meta, "key_nonkey_generate", stage.number)[-1]
        sample = jax.tree.map(lambda a, i=i: a[i : i + 1], stage.batch)
        single_stage = dataclasses.replace(stage, batch=sample, vision_tokens=stage.vision_tokens[i : i + 1])
        with loss.case(name) as case:
            draws = stage.meta.get("compress_mask_draws_generate") or []
            prompt_selection, _ = select_prompts(stage, draws, expected_plan)
            prompt_selection = jax.tree.map(lambda a, i=i: a[i : i + 1], prompt_selection)
            ours, memory, mask = _run_alone(single_stage, prompt_selection, max_length)
            case.same(int(prompt_selection.prompt_lengths[0]), int(arrays[f"{name}_attention_mask"].sum()), "length")
            case.close(ours, arrays[f"{name}_loss"])
        with best.case(name) as case:
            generate_kwargs, expected = stage.meta["generate_kwargs"], arrays[f"{name}_gen_sequences"]
            answers = search_answers(
                stage.model.t5,
                memory,
                mask,
                beams=generate_kwargs["num_beams"],
                length=generate_kwargs["max_new_tokens"],
                min_length=generate_kwargs["min_length"],
            )
            case.same(as_sequences(answers.tokens[:, 0], expected.shape[1]), expected)
            case.close(answers.score[:, 0], arrays[f"{name}_gen_scores"], "score")
            case.same([decode_answer(stage.tokenizer, np.asarray(answers.tokens)[0, 0])], meta[name]["raw"], "answer")


def _run_alone(stage: Stage, prompt_selection: PromptSelection, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    @nnx.jit
    def run(model: Calce) -> tuple[jax.Array, jax.Array, jax.Array]:
        losses = model.loss(stage.vision_tokens, stage.batch, prompt_selection, length, behaviour="reference")
        x, mask = model.embed_prompt(stage.vision_tokens, stage.batch, prompt_selection, length)
        return losses[0], model.t5.encode(x, mask), mask

    return run(stage.model)
