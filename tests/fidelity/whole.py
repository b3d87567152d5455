"""13: the whole model, from video and query to loss, gradients, one step of the optimizer, and answers.

The original pads a batch in the middle of its prompts, which moves what T5 takes for positions. For comparing batches,
our prompts are laid out as the recorded masks are; a batch of one has no padding and goes the ordinary way.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.checkpoints.convert.calce import key_mapping
from calce_jax.checkpoints.convert.state_dict import to_torch
from calce_jax.config import OptimizerConfig
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.models.calce import (
    Calce,
    CalceConfig,
    PromptSelection,
    SelectionConfig,
    answer_loss,
    shift_right,
    split_params,
)
from calce_jax.models.keyframes.reference_noise import ReferenceNoise
from calce_jax.moments import windows_reference
from calce_jax.text.prompt import Caption, PromptWriter, TextSizes, decode_answer, mentions_speech
from calce_jax.text.tokenizers import load_bert, load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import apply_gradients, create_train_state
from tests.fidelity import sizes
from tests.fidelity.folder import RecordedArrays, RecordingFolder
from tests.fidelity.language import as_sequences, search_answers
from tests.fidelity.report import Group
from tests.fidelity.selection import selected_frames, uniform_draws
from tests.fidelity.text import Tokenizers
from tests.helpers import recordings_io as golden

# float32 sums in another order, through all three towers.
ACTIVATIONS, LOGITS, SCORES = 2e-5, 1e-4, 2e-5
GRADIENTS = 5e-4  # and back, where sums over all positions cancel
# A step moves every weight by about the rate, whatever the gradient's size. Where that is nearly 0, rounding decides
# which way; those weights are left out.
STEP_TOLERANCE, NO_GRADIENT = 1e-5, 1e-6
WORDS = 64


@dataclasses.dataclass(frozen=True)
class Stage:
    """What was recorded of one stage, and our model on the same batch."""

    number: int
    meta: dict[str, Any]
    arrays: RecordedArrays
    model: Calce
    vision_tokens: jax.Array  # (B, T, P, D)
    batch: Batch
    selection: SelectionConfig
    tokenizer: Any

    def recorded(self, name: str) -> np.ndarray:
        """Return an array of this stage."""
        return self.arrays[f"s{self.number}_{name}"]

    def names(self, kind: str) -> list[str]:
        """Return the parameters of which there is such an array."""
        prefix = f"s{self.number}_{kind}/"
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]


def end_to_end(folder: RecordingFolder) -> Iterator[Group]:
    """Compare everything both stages compute on a batch, and on each of its samples alone."""
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
        batch = batch_of(
            stage_meta,
            arrays[f"s{number}_timestamps"],
            answer=arrays[f"s{number}_labels"].shape[1],
            stage=number,
            tokenizers=tokenizers,
            model=model,
        )
        stages.append(Stage(number, stage_meta, arrays, model, vision_tokens, batch, selection, tokenizers[0]))
    for stage in stages:
        yield from _compare_stage(stage)
    yield from _compare_alone(folder, stages)


def load_calce(tensors: dict[str, np.ndarray], settings: Mapping[str, Any]) -> Calce:
    """Return the recorded model."""
    words = tensors["Qformer.bert.embeddings.word_embeddings.weight"]
    qformer = sizes.qformer(tensors, settings["qformer"], vocab=len(words))
    config = CalceConfig(
        sizes.vit(tensors, settings["vit"]),
        qformer,
        sizes.t5(tensors, "t5_model.base_model.model."),
        sizes.lora(tensors, settings.get("lora_scaling", 1.0)),
        compressed_query_tokens=len(tensors["query_proj.weight"]),
    )
    abstract = nnx.eval_shape(lambda: Calce(config, rngs=nnx.Rngs(0)))
    return golden.load_state_dict(
        abstract, key_mapping(lora=True, cross_attention_frequency=qformer.cross_attention_frequency), tensors
    )


def batch_of(
    meta: dict[str, Any], times: np.ndarray, *, answer: int, stage: int, tokenizers: Tokenizers, model: Calce
) -> Batch:
    """Return the recorded samples as a batch with room for answers of so many tokens.

    Its frames, which were recorded normalised, are left out.
    """
    samples = meta["samples"]
    count, frames = times.shape
    captions = max(1, *map(len, samples["subtitles"]))
    words = min(WORDS, model.qformer.config.max_positions)
    text_sizes = TextSizes(frames, captions, words, text_tokens=400 + 2 * frames + 64 * captions, answer_tokens=answer)
    writer = PromptWriter(*tokenizers, text_sizes, stage=stage, behaviour="reference")  # pyright: ignore[reportArgumentType]
    stage1_texts = samples.get("stage1_result") or ["[[0, 1]]"] * count
    windows = [_windows(text) for text in stage1_texts]
    max_windows = max(1, *map(len, windows))
    rows = []
    for i in range(count):
        query = samples["query_prompt"][i].removeprefix("Query: ").removesuffix("\n")
        items = samples["item_prompt"][i].removeprefix("Items: ").removesuffix("\n").split(",")
        captions_of_row = [
            Caption(caption["start"], caption["end"], caption["text"]) for caption in samples["subtitles"][i]
        ]
        duration, intervals = meta["duration"][i], samples["subtitle_durations"][i]
        text = writer.write(
            query,
            items,
            times[i],
            duration,
            captions_of_row,
            true_windows=_windows(samples["relevant_windows"][i]),
            stage1_windows=windows[i],
        )
        rows.append(
            {
                "frames": np.zeros((frames, 1, 1, 3), np.uint8),
                "frame_mask": np.ones(frames, bool),
                "times": np.asarray(times[i], np.float32),
                "duration": np.float32(duration),
                "tokens": text.tokens,
                "spans": text.spans,
                "query_bert_tokens": text.query_bert_tokens,
                "caption_bert_tokens": text.caption_bert_tokens,
                "is_speech_query": np.bool_(bool(intervals) and mentions_speech(query, "reference")),
                "has_speech": mark_speech_frames(intervals, duration, frames),
                "stage1_windows": np.asarray(windows[i] + [[0, 0]] * (max_windows - len(windows[i])), np.float32),
                "window_mask": np.arange(max_windows) < len(windows[i]),
                "labels": text.labels,
                "row_mask": np.bool_(True),
                "example_index": np.int32(i),
                "row_flags": np.int32(0),
            }
        )
    return Batch(**{name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]})


def _compare_stage(stage: Stage) -> Iterator[Group]:
    n, count = stage.number, len(stage.batch.example_index)
    selection = Group(f"13_e2e/stage {n}: key frames")
    yield selection
    prompt_selections = {}
    for when in ("forward", "generate"):
        calls = _calls(stage.meta, f"key_nonkey_{when}", n)
        prompt_selection, plans = _select_prompts(stage, stage.meta.get(f"compress_mask_draws_{when}") or [], calls[-1])
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

    # What is trained, and all that follows from it.
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

    # The gradient of every trained parameter, and the parameter after one step.
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
    trainable: nnx.State,
    *,
    graph: Any,
    frozen: nnx.State,
    stage: Stage,
    prompt_selection: PromptSelection,
    mask: np.ndarray,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the loss of a batch, averaged over all its tokens as there, the laid out prompts, and the logits."""
    model: Calce = nnx.merge(graph, trainable, frozen)
    x = _align_prompts(model, stage, prompt_selection, mask)
    prompt_mask, labels = jnp.asarray(mask), stage.batch.labels
    logits = model.t5.decode(shift_right(labels), model.t5.encode(x, prompt_mask), prompt_mask)
    tokens = (labels != 0).sum(axis=1).astype(jnp.float32)
    return (answer_loss(logits, labels) * tokens).sum() / tokens.sum(), (x, logits)


def _align_prompts(model: Calce, stage: Stage, prompt_selection: PromptSelection, mask: np.ndarray) -> jax.Array:
    """Put our prompts where the original's mask says that something is."""
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
            first = stage.recorded("logits_first64")[i][answer_mask]
            case.close(logits[i][answer_mask][:, : first.shape[1]], first)
            case.close(total[i][answer_mask], stage.recorded("logits_logsumexp")[i][answer_mask])
            case.same(logits[i][answer_mask].argmax(axis=-1), stage.recorded("argmax")[i][answer_mask], "most probable")


def _by_torch_name(model: Calce, trained: nnx.State, trainable: nnx.State) -> dict[str, np.ndarray]:
    """Return the trained parameters, or what stands for them, under the original's names and in its layout."""
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
            # The sum cancels to nearly nothing.
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

    greedy, best = Group(f"13_e2e/stage {n}: greedy"), Group(f"13_e2e/stage {n}: best answer", SCORES)
    top, windows = Group(f"13_e2e/stage {n}: all beams", SCORES), Group(f"13_e2e/stage {n}: windows")
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
            expected = stage.recorded("gen_top5_sequences")
            num_recorded = len(expected) // count
            beam_rows = slice(i * num_recorded, (i + 1) * num_recorded)
            case.same(as_sequences(tokens[i, :num_recorded], expected.shape[1]), expected[beam_rows])
            case.close(scores[i, :num_recorded], stage.recorded("gen_top5_scores")[beam_rows], "scores")
        with windows.case(f"sample {i}") as case:
            answer = decode_answer(stage.tokenizer, tokens[i, 0])
            case.same(answer, stage.meta["raw_pred_windows"][i], "answer")
            case.same(
                windows_reference.repair_windows(answer, stage.meta["duration"][i]),
                stage.meta["pred_windows"][i],
                "windows",
            )


def _compare_alone(folder: RecordingFolder, stages: Sequence[Stage]) -> Iterator[Group]:
    """Compare each sample alone, without any of the original's layout: the loss, and the best answer."""
    arrays, meta = folder.arrays("13_e2e_b1"), folder.json("13_e2e_b1_meta")
    by_number = {stage.number: stage for stage in stages}
    loss, best = Group("13_e2e_b1/loss", ACTIVATIONS), Group("13_e2e_b1/best answer", SCORES)
    yield from (loss, best)
    max_length = max(arrays[name].shape[1] for name in arrays if name.endswith("_attention_mask"))
    for name in meta:
        name_match = re.fullmatch(r"s(\d)_(\d+)", name)
        if not name_match:
            loss.add_note(f"not compared: {name}")
            continue
        stage, i = by_number[int(name_match[1])], int(name_match[2])
        expected_plan = _calls(stage.meta, "key_nonkey_generate", stage.number)[-1]
        sample = jax.tree.map(lambda a, i=i: a[i : i + 1], stage.batch)
        single_stage = dataclasses.replace(stage, batch=sample, vision_tokens=stage.vision_tokens[i : i + 1])
        with loss.case(name) as case:
            draws = stage.meta.get("compress_mask_draws_generate") or []
            prompt_selection, _ = _select_prompts(stage, draws, expected_plan)
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


def _select_prompts(stage: Stage, draws: Sequence[Any], expected: list[Any]) -> tuple[PromptSelection, list[Any]]:
    """Choose key frames and captions; return the reading, and of each sample its key frames and its other frames.

    Draws were recorded one after the other for the whole batch. How many of them belong to a sample shows when its
    frames come out as recorded; if they never do, it gets all that are left.
    """
    rows, frames = stage.batch.frame_mask.shape
    num_draws = len(draws) // 2 + 1

    @jax.jit
    def read(vision_tokens: jax.Array, batch: Batch, draws: jax.Array) -> PromptSelection:
        noise = ReferenceNoise(density_noise=jnp.zeros((*batch.frame_mask.shape[:1], 2, frames)), removal_draws=draws)
        return stage.model.select(vision_tokens, batch, stage.selection, reference_noise=noise)

    if not draws:
        prompt_selection = jax.jit(
            lambda vision_tokens, batch: stage.model.select(vision_tokens, batch, stage.selection)
        )(stage.vision_tokens, stage.batch)
        return prompt_selection, [selected_frames(prompt_selection.frame_plan, i) for i in range(rows)]
    selections, plans, remaining = [], [], list(draws)
    for i in range(rows):
        vision_tokens, sample = stage.vision_tokens[i : i + 1], jax.tree.map(lambda a, i=i: a[i : i + 1], stage.batch)
        for num_used in [*range(0, len(remaining) + 1, 2), len(remaining)]:
            selection = read(vision_tokens, sample, jnp.asarray(uniform_draws(remaining[:num_used], num_draws))[None])
            if selected_frames(selection.frame_plan, 0) == expected[i]:
                break
        remaining = remaining[num_used:]
        selections.append(selection)
        plans.append(selected_frames(selection.frame_plan, 0))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *selections), plans


def _calls(meta: Mapping[str, Any], name: str, stage: int) -> list[list[list[list[int]]]]:
    """Return for each recorded call the [key frames, other frames] of each sample.

    Of stage 1 the results of a function were recorded, the key frames of all samples and then their other frames; of
    stage 2 the samples of the one call there was.
    """
    recorded = meta[name]
    return [[list(pair) for pair in zip(*call, strict=True)] for call in recorded] if stage == 1 else [recorded]


def _windows(text: Any) -> list[list[float]]:
    """Return windows that were recorded as text, or as they are."""
    return ast.literal_eval(text) if isinstance(text, str) else text
