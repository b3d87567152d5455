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
from calce_jax.checkpoints.convert.calce import table
from calce_jax.checkpoints.convert.state_dict import to_torch
from calce_jax.config import OptimizerConfig
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.input_pipeline.speech_mask import spoken_frames
from calce_jax.models.calce import Calce, CalceConfig, Reading, Selection, answer_loss, shifted, split
from calce_jax.models.keyframes.reference_noise import Chance
from calce_jax.moments import windows_reference
from calce_jax.text.prompt import Caption, PromptWriter, TextSizes, about_talking, answer_text
from calce_jax.text.tokenizers import load_bert, load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import apply_gradients, new_state
from tests import golden
from tests.fidelity import sizes
from tests.fidelity.folder import Arrays, Folder
from tests.fidelity.language import as_sequences, written
from tests.fidelity.report import Group
from tests.fidelity.selection import as_draws, chosen
from tests.fidelity.text import Tokenizers

# float32 sums in another order, through all three towers.
ACTIVATIONS, LOGITS, SCORES = 2e-5, 1e-4, 2e-5
GRADIENTS = 5e-4  # and back, where sums over all positions cancel
# A step moves every weight by about the rate, whatever the gradient's size. Where that is nearly 0, rounding decides
# which way; those weights are left out.
STEPPED, NO_GRADIENT = 1e-5, 1e-6
WORDS = 64


@dataclasses.dataclass(frozen=True)
class Stage:
    """What was recorded of one stage, and our model on the same batch."""

    number: int
    meta: dict[str, Any]
    arrays: Arrays
    model: Calce
    seen: jax.Array  # (B, T, P, D)
    batch: Batch
    selection: Selection
    tokenizer: Any

    def recorded(self, name: str) -> np.ndarray:
        """Return an array of this stage."""
        return self.arrays[f"s{self.number}_{name}"]

    def names(self, kind: str) -> list[str]:
        """Return the parameters of which there is such an array."""
        prefix = f"s{self.number}_{kind}/"
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]


def end_to_end(folder: Folder) -> Iterator[Group]:
    """Compare everything both stages compute on a batch, and on each of its samples alone."""
    arrays, meta = folder.arrays("13_e2e"), folder.json("13_e2e_meta")
    tensors = folder.arrays("13_e2e_state_dict")
    model = load(dict(tensors.named("")), folder.settings("13_e2e"))
    tokenizers = load_t5(folder.beside("tokenizers", "t5")), load_bert(folder.beside("tokenizers", "bert"))
    video = np.moveaxis(arrays["video"], 2, -1)
    tokens = nnx.jit(lambda model, frames: model.vit(frames))(model, jnp.asarray(video.reshape(-1, *video.shape[2:])))
    seen = tokens.reshape(*video.shape[:2], *tokens.shape[1:])

    stages = []
    for number in sorted(int(found[1]) for name in meta if (found := re.fullmatch(r"stage(\d)", name))):
        its = meta[f"stage{number}"]
        selection = Selection(
            stage=number,  # pyright: ignore[reportArgumentType]
            clusters=its["num_clusters"],
            dilation=its["bias1"],
            filter_dilation=its["bias2"],
            behaviour="reference",
        )
        batch = batch_of(
            its,
            arrays[f"s{number}_timestamps"],
            answer=arrays[f"s{number}_labels"].shape[1],
            stage=number,
            tokenizers=tokenizers,
            model=model,
        )
        stages.append(Stage(number, its, arrays, model, seen, batch, selection, tokenizers[0]))
    for stage in stages:
        yield from _compare_stage(stage)
    yield from _compare_alone(folder, stages)


def load(tensors: dict[str, np.ndarray], settings: Mapping[str, Any]) -> Calce:
    """Return the recorded model."""
    words = tensors["Qformer.bert.embeddings.word_embeddings.weight"]
    qformer = sizes.qformer(tensors, settings["qformer"], vocab=len(words))
    config = CalceConfig(
        sizes.vit(tensors, settings["vit"]),
        qformer,
        sizes.t5(tensors, "t5_model.base_model.model."),
        sizes.lora(tensors, settings.get("lora_scaling", 1.0)),
        compressed=len(tensors["query_proj.weight"]),
    )
    abstract = nnx.eval_shape(lambda: Calce(config, rngs=nnx.Rngs(0)))
    return golden.load(abstract, table(lora=True, cross_every=qformer.cross_every), tensors)


def batch_of(
    meta: dict[str, Any], times: np.ndarray, *, answer: int, stage: int, tokenizers: Tokenizers, model: Calce
) -> Batch:
    """Return the recorded samples as a batch with room for answers of so many tokens.

    Its frames, which were recorded normalised, are left out.
    """
    samples = meta["samples"]
    count, frames = times.shape
    captions = max(1, *map(len, samples["subtitles"]))
    words = min(WORDS, model.qformer.config.positions)
    room = TextSizes(frames, captions, words, text_tokens=400 + 2 * frames + 64 * captions, answer_tokens=answer)
    writer = PromptWriter(*tokenizers, room, stage=stage, behaviour="reference")  # pyright: ignore[reportArgumentType]
    told = samples.get("stage1_result") or ["[[0, 1]]"] * count
    windows = [_windows(text) for text in told]
    most = max(1, *map(len, windows))
    rows = []
    for i in range(count):
        query = samples["query_prompt"][i].removeprefix("Query: ").removesuffix("\n")
        items = samples["item_prompt"][i].removeprefix("Items: ").removesuffix("\n").split(",")
        said = [Caption(caption["start"], caption["end"], caption["text"]) for caption in samples["subtitles"][i]]
        duration, intervals = meta["duration"][i], samples["subtitle_durations"][i]
        text = writer.write(
            query,
            items,
            times[i],
            duration,
            said,
            answer=_windows(samples["relevant_windows"][i]),
            reference_windows=windows[i],
        )
        rows.append(
            {
                "frames": np.zeros((frames, 1, 1, 3), np.uint8),
                "present": np.ones(frames, bool),
                "times": np.asarray(times[i], np.float32),
                "duration": np.float32(duration),
                "tokens": text.tokens,
                "spans": text.spans,
                "query_words": text.query_words,
                "caption_words": text.caption_words,
                "talk": np.bool_(bool(intervals) and about_talking(query, "reference")),
                "spoken": spoken_frames(intervals, duration, frames),
                "windows": np.asarray(windows[i] + [[0, 0]] * (most - len(windows[i])), np.float32),
                "window_valid": np.arange(most) < len(windows[i]),
                "labels": text.labels,
                "valid": np.bool_(True),
                "row": np.int32(i),
                "notes": np.int32(0),
            }
        )
    return Batch(**{name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]})


def _compare_stage(stage: Stage) -> Iterator[Group]:
    n, count = stage.number, len(stage.batch.row)
    selection = Group(f"13_e2e/stage {n}: key frames")
    yield selection
    readings = {}
    for when in ("forward", "generate"):
        calls = _calls(stage.meta, f"key_nonkey_{when}", n)
        reading, plans = _read(stage, stage.meta.get(f"compress_mask_draws_{when}") or [], calls[-1])
        readings[when] = reading
        for call, wanted in enumerate(calls):
            for i in range(count):
                with selection.case(f"{when}, call {call}, sample {i}") as case:
                    case.same(plans[i], wanted[i])

    embedded = Group(f"13_e2e/stage {n}: prompts", ACTIVATIONS)
    predicted, loss = Group(f"13_e2e/stage {n}: logits", LOGITS), Group(f"13_e2e/stage {n}: loss", ACTIVATIONS)
    gradients = Group(f"13_e2e/stage {n}: gradients", GRADIENTS)
    stepped = Group(f"13_e2e/stage {n}: AdamW step", STEPPED)
    yield from (embedded, predicted, loss, gradients, stepped)

    with embedded.case("ln_vision") as case:
        norm = stage.model.ln_vision(stage.seen.reshape(-1, *stage.seen.shape[2:]))
        case.close(norm, stage.recorded("ln_vision_out"))
    mask = stage.recorded("attention_mask") != 0
    for i, needed in enumerate(np.asarray(readings["forward"].needed).tolist()):
        with embedded.case(f"length of prompt {i}") as case:
            case.same(needed, int(mask[i].sum()))

    # What is trained, and all that follows from it.
    graph, trainable, frozen = split(stage.model, "float32")
    run = partial(_forward, graph=graph, frozen=frozen, stage=stage, reading=readings["forward"], mask=mask)
    (total, (x, logits)), slopes = jax.jit(jax.value_and_grad(run, has_aux=True))(trainable)
    for i in range(count):
        with embedded.case(f"prompt {i}") as case:
            case.close(np.asarray(x)[i][mask[i]], stage.recorded("inputs_embeds")[i][mask[i]])
    _compare_logits(predicted, stage, np.asarray(logits))
    with loss.case("loss") as case:
        case.close(total, stage.recorded("loss"))
        case.close(total, stage.meta["loss"])

    # The gradient of every trained parameter, and the parameter after one step.
    ours = _by_name(stage.model, slopes, trainable)
    _compare_gradients(gradients, stage, ours)
    how = stage.meta["adamw"]
    optimizer = make_optimizer(
        OptimizerConfig(1, *how["betas"], eps=how["eps"], weight_decay=how["weight_decay"]), "reference"
    )
    after = jax.jit(lambda t, s: apply_gradients(new_state(t, optimizer), s, optimizer, jnp.float32(how["lr"])))
    _compare_step(stepped, stage, _by_name(stage.model, after(trainable, slopes).trainable, trainable), ours)

    yield from _compare_answers(stage, readings["generate"])


def _forward(
    trainable: nnx.State, *, graph: Any, frozen: nnx.State, stage: Stage, reading: Reading, mask: np.ndarray
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the loss of a batch, averaged over all its tokens as there, the laid out prompts, and the logits."""
    model: Calce = nnx.merge(graph, trainable, frozen)
    x = _laid_out(model, stage, reading, mask)
    held, labels = jnp.asarray(mask), stage.batch.labels
    logits = model.t5.decode(shifted(labels), model.t5.encode(x, held), held)
    tokens = (labels != 0).sum(axis=1).astype(jnp.float32)
    return (answer_loss(logits, labels) * tokens).sum() / tokens.sum(), (x, logits)


def _laid_out(model: Calce, stage: Stage, reading: Reading, mask: np.ndarray) -> jax.Array:
    """Put our prompts where the original's mask says that something is."""
    x, _ = model.embed(stage.seen, stage.batch, reading, mask.shape[1])
    place = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    moved = jnp.take_along_axis(x, jnp.asarray(place)[:, :, None], axis=1)
    return jnp.where(jnp.asarray(mask)[:, :, None], moved, jnp.zeros_like(moved))


def _compare_logits(group: Group, stage: Stage, logits: np.ndarray) -> None:
    labels = np.asarray(stage.batch.labels)
    total = np.asarray(jax.nn.logsumexp(logits, axis=-1))
    for i, said in enumerate(labels != 0):
        with group.case(f"answer {i}") as case:
            case.same(labels[i][said], stage.recorded("labels")[i][said], "labels")
            first = stage.recorded("logits_first64")[i][said]
            case.close(logits[i][said][:, : first.shape[1]], first)
            case.close(total[i][said], stage.recorded("logits_logsumexp")[i][said])
            case.same(logits[i][said].argmax(axis=-1), stage.recorded("argmax")[i][said], "most probable")


def _by_name(model: Calce, trained: nnx.State, trainable: nnx.State) -> dict[str, np.ndarray]:
    """Return the trained parameters, or what stands for them, under the original's names and in its layout."""
    state = nnx.state(model)
    leaves = {name: np.zeros(leaf.shape, np.float32) for name, leaf in named_leaves(state).items()}
    marks = {name: np.ones(leaf.shape, np.float32) for name, leaf in named_leaves(trainable).items()}
    names = table(lora=True, cross_every=model.qformer.config.cross_every)
    marked = to_torch(names, with_leaves(state, leaves | marks))
    filled = {name: np.asarray(leaf) for name, leaf in named_leaves(trained).items()}
    tensors = to_torch(names, with_leaves(state, leaves | filled))
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
            wide = ours[name].astype(np.float64)
            case.close(wide.sum(), stage.recorded(f"grad_sum/{name}"), "sum", scale=float(np.abs(wide).sum()))


def _compare_step(group: Group, stage: Stage, ours: dict[str, np.ndarray], slopes: dict[str, np.ndarray]) -> None:
    left_out = 0
    for kind in ("adamw", "adamw_rows"):
        for name in stage.names(kind):
            with group.case(name) as case:
                rows = stage.recorded(f"grad_rows_ids/{name}") if kind == "adamw_rows" else slice(None)
                moved = np.abs(slopes[name][rows]) > NO_GRADIENT
                left_out += int((~moved).sum())
                case.close(ours[name][rows][moved], stage.recorded(f"{kind}/{name}")[moved])
    for name in stage.names("adamw_sum"):
        undecided = int((np.abs(slopes[name]) <= NO_GRADIENT).sum())
        wide, wanted = ours[name].astype(np.float64), stage.recorded(f"adamw_sum/{name}")
        with group.case(f"sum of {name}", tied=undecided > 0) as case:
            case.close(wide.sum(), wanted, scale=float(np.abs(wide).sum()))
    group.remark(f"apart: {left_out} weights whose gradient is below {NO_GRADIENT:g}, so that rounding decides")


def _compare_answers(stage: Stage, reading: Reading) -> Iterator[Group]:
    n, count, how = stage.number, len(stage.batch.row), stage.meta["generate_kwargs"]
    mask = stage.recorded("gen_attention_mask") != 0
    t5 = stage.model.t5

    @nnx.jit
    def encoded(model: Calce) -> tuple[jax.Array, jax.Array]:
        x = _laid_out(model, stage, reading, mask)
        return x, model.t5.encode(x, jnp.asarray(mask))

    prompts = Group(f"13_e2e/stage {n}: prompts to answer", ACTIVATIONS)
    yield prompts
    x, memory = encoded(stage.model)
    for i in range(count):
        with prompts.case(f"prompt {i}") as case:
            case.close(np.asarray(x)[i][mask[i]], stage.recorded("gen_inputs_embeds")[i][mask[i]])

    greedy, best = Group(f"13_e2e/stage {n}: greedy"), Group(f"13_e2e/stage {n}: best answer", SCORES)
    top, read = Group(f"13_e2e/stage {n}: all beams", SCORES), Group(f"13_e2e/stage {n}: windows")
    yield from (greedy, best, top, read)
    length, shortest, held = how["max_new_tokens"], how["min_length"], jnp.asarray(mask)
    with greedy.case("answers") as case:
        ours = written(t5, memory, held, beams=1, length=length, shortest=shortest)
        wanted = stage.recorded("greedy_sequences")
        case.same(as_sequences(ours.tokens[:, 0], wanted.shape[1]), wanted)
    ours = written(t5, memory, held, beams=how["num_beams"], length=length, shortest=shortest)
    tokens, scores = np.asarray(ours.tokens), np.asarray(ours.score)
    for i in range(count):
        with best.case(f"sample {i}") as case:
            wanted = stage.recorded("gen_sequences")
            case.same(as_sequences(tokens[:, 0], wanted.shape[1])[i], wanted[i])
            case.close(scores[i, 0], stage.recorded("gen_scores")[i], "score")
        with top.case(f"sample {i}") as case:
            wanted = stage.recorded("gen_top5_sequences")
            kept = len(wanted) // count
            its = slice(i * kept, (i + 1) * kept)
            case.same(as_sequences(tokens[i, :kept], wanted.shape[1]), wanted[its])
            case.close(scores[i, :kept], stage.recorded("gen_top5_scores")[its], "scores")
        with read.case(f"sample {i}") as case:
            said = answer_text(stage.tokenizer, tokens[i, 0])
            case.same(said, stage.meta["raw_pred_windows"][i], "answer")
            case.same(windows_reference.mend(said, stage.meta["duration"][i]), stage.meta["pred_windows"][i], "windows")


def _compare_alone(folder: Folder, stages: Sequence[Stage]) -> Iterator[Group]:
    """Compare each sample alone, without any of the original's layout: the loss, and the best answer."""
    arrays, meta = folder.arrays("13_e2e_b1"), folder.json("13_e2e_b1_meta")
    by_number = {stage.number: stage for stage in stages}
    loss, best = Group("13_e2e_b1/loss", ACTIVATIONS), Group("13_e2e_b1/best answer", SCORES)
    yield from (loss, best)
    longest = max(arrays[name].shape[1] for name in arrays if name.endswith("_attention_mask"))
    for name in meta:
        found = re.fullmatch(r"s(\d)_(\d+)", name)
        if not found:
            loss.remark(f"not compared: {name}")
            continue
        stage, i = by_number[int(found[1])], int(found[2])
        wanted_plan = _calls(stage.meta, "key_nonkey_generate", stage.number)[-1]
        one = jax.tree.map(lambda a, i=i: a[i : i + 1], stage.batch)
        alone = dataclasses.replace(stage, batch=one, seen=stage.seen[i : i + 1])
        with loss.case(name) as case:
            draws = stage.meta.get("compress_mask_draws_generate") or []
            reading, _ = _read(stage, draws, wanted_plan)
            reading = jax.tree.map(lambda a, i=i: a[i : i + 1], reading)
            ours, memory, mask = _run_alone(alone, reading, longest)
            case.same(int(reading.needed[0]), int(arrays[f"{name}_attention_mask"].sum()), "length")
            case.close(ours, arrays[f"{name}_loss"])
        with best.case(name) as case:
            how, wanted = stage.meta["generate_kwargs"], arrays[f"{name}_gen_sequences"]
            answers = written(
                stage.model.t5,
                memory,
                mask,
                beams=how["num_beams"],
                length=how["max_new_tokens"],
                shortest=how["min_length"],
            )
            case.same(as_sequences(answers.tokens[:, 0], wanted.shape[1]), wanted)
            case.close(answers.score[:, 0], arrays[f"{name}_gen_scores"], "score")
            case.same([answer_text(stage.tokenizer, np.asarray(answers.tokens)[0, 0])], meta[name]["raw"], "answer")


def _run_alone(stage: Stage, reading: Reading, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    @nnx.jit
    def run(model: Calce) -> tuple[jax.Array, jax.Array, jax.Array]:
        each = model.loss(stage.seen, stage.batch, reading, length, behaviour="reference")
        x, mask = model.embed(stage.seen, stage.batch, reading, length)
        return each[0], model.t5.encode(x, mask), mask

    return run(stage.model)


def _read(stage: Stage, draws: Sequence[Any], wanted: list[Any]) -> tuple[Reading, list[Any]]:
    """Choose key frames and captions; return the reading, and of each sample its key frames and its other frames.

    Draws were recorded one after the other for the whole batch. How many of them belong to a sample shows when its
    frames come out as recorded; if they never do, it gets all that are left.
    """
    rows, frames = stage.batch.present.shape
    room = len(draws) // 2 + 1

    @jax.jit
    def read(seen: jax.Array, batch: Batch, draws: jax.Array) -> Reading:
        chance = Chance(noise=jnp.zeros((*batch.present.shape[:1], 2, frames)), draws=draws)
        return stage.model.read(seen, batch, stage.selection, chance=chance)

    if not draws:
        chosen_ = jax.jit(lambda seen, batch: stage.model.read(seen, batch, stage.selection))(stage.seen, stage.batch)
        return chosen_, [chosen(chosen_.plan, i) for i in range(rows)]
    readings, plans, left = [], [], list(draws)
    for i in range(rows):
        seen, one = stage.seen[i : i + 1], jax.tree.map(lambda a, i=i: a[i : i + 1], stage.batch)
        for used in [*range(0, len(left) + 1, 2), len(left)]:
            reading = read(seen, one, jnp.asarray(as_draws(left[:used], room))[None])
            if chosen(reading.plan, 0) == wanted[i]:
                break
        left = left[used:]
        readings.append(reading)
        plans.append(chosen(reading.plan, 0))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *readings), plans


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
