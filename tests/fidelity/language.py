"""02 and 03: the Q-Former, and T5 with and without adapters: encoder, logits, loss, and beam search."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert import qformer as qformer_names
from calce_jax.checkpoints.convert import t5 as t5_names
from calce_jax.checkpoints.convert.state_dict import to_torch
from calce_jax.config import Behaviour
from calce_jax.models import lora
from calce_jax.models.beam_search import beam_search
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.calce import answer_loss, shift_right
from calce_jax.models.calce_sizes import QFormerConfig
from calce_jax.models.layers import gelu
from calce_jax.models.qformer import QFormer
from calce_jax.models.t5 import T5, relative_position_bucket
from calce_jax.text.tokenizers import load_bert
from tests.fidelity import sizes
from tests.fidelity.folder import RecordedArrays, RecordingFolder
from tests.fidelity.report import Group
from tests.helpers import recordings_io

# float32 sums in another order, through all layers.
ACTIVATIONS = 2e-5
# The same with cancellation in the head.
LOGITS = 1e-4
# Log-probability of an answer, per token. Absolute: as logits deviate by as much where an answer is almost certain, its
# score near 0, as elsewhere.
SCORES = 1e-4
# Of recorded beam searches whose settings are not in config.json.
BEAMS = 5
# The last transformers version whose beam search counts the start token in the length of unfinished beams.
LENGTH_COUNTS_START = (4, 35)
WORD_EMBEDDINGS = "Qformer.bert.embeddings.word_embeddings.weight"


def qformer(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the visual branch layer by layer, the text branch, and the BERT tokens."""
    arrays = folder.arrays("02_qformer")
    tensors = arrays.with_prefix("Qformer.", "query_tokens")
    model = load_qformer(tensors, arrays["word_embedding_ids"], arrays["word_embedding_rows"], folder, "02_qformer")

    visual = Group("02_qformer/visual", ACTIVATIONS)
    yield visual
    image = jnp.asarray(arrays["image_embeds"])
    states = np.asarray(jax.jit(model.image_hidden_states)(image))
    recorded = [name for name in arrays if re.fullmatch(r"visual_hidden\d+", name)]
    with visual.case("number of layers") as case:
        case.same(len(states), len(recorded))
    for number, state in enumerate(states):
        with visual.case(f"layer {number}") as case:
            case.close(state, arrays[f"visual_hidden{number}"])
    with visual.case("result") as case:
        case.close(jax.jit(model.encode_images)(image), arrays["visual_last_hidden"])

    text = Group("02_qformer/text", ACTIVATIONS)
    yield text
    ids, mask = arrays["text_input_ids"], arrays["text_attention_mask"] != 0
    real = arrays["text_last_hidden_real"]
    hidden = np.asarray(jax.jit(model.encode_text)(jnp.asarray(ids, jnp.int32)))
    for number in range(len(ids)):
        with text.case(f"sentence {number}") as case:
            case.close(hidden[number, 0], arrays["text_cls"][number])
            row_mask = mask[number, : real.shape[1]]
            case.close(hidden[number, : real.shape[1]][row_mask], real[number][row_mask])

    words = Group("02_qformer/words")
    yield words
    bert = load_bert(folder.find_shared("tokenizers", "bert"))
    for sentence, token_ids, row_mask in zip(arrays["texts"].tolist(), ids, mask, strict=True):
        with words.case(sentence) as case:
            case.same(bert(sentence)["input_ids"], token_ids[row_mask].tolist())


def load_qformer(
    tensors: sizes.Tensors, word_ids: np.ndarray, rows: np.ndarray, folder: RecordingFolder, group: str
) -> QFormer:
    """Return a recorded Q-Former; weights of the visual branch that were not recorded are 0.

    Args:
      tensors: recorded weights without the word embedding.
      word_ids: rows of the word embedding that were recorded; the others are 0.
      rows: their values.
      folder: of the recordings.
      group: name of its settings.
    """
    config: QFormerConfig = sizes.qformer(tensors, folder.settings(group), vocab=int(word_ids.max()) + 1)
    embeddings = np.zeros((config.vocab, config.width), np.float32)
    embeddings[word_ids] = rows
    model = nnx.eval_shape(lambda: QFormer(config, rngs=nnx.Rngs(0)))
    names = qformer_names.key_mapping(config.cross_attention_frequency)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.state(model))
    unused_weights = {
        name: zero for name, zero in to_torch(names, zeros).items() if "crossatt" in name or "query_" in name
    }
    return recordings_io.load_state_dict(model, names, {**unused_weights, **tensors, WORD_EMBEDDINGS: embeddings})


def t5(folder: RecordingFolder) -> Iterator[Group]:
    """Compare encoder, logits, loss and beam search of every recorded T5."""
    arrays, meta = folder.arrays("03_t5"), folder.json("03_t5_meta")
    version = tuple(int(part) for part in meta["transformers"].split(".")[:2])
    behaviour: Behaviour = "reference" if version <= LENGTH_COUNTS_START else "default"
    encoder = Group("03_t5/encoder", ACTIVATIONS)
    logits, loss = Group("03_t5/logits", LOGITS), Group("03_t5/loss", ACTIVATIONS)
    answers = Group("03_t5/answers", SCORES, is_absolute=True)
    yield from (encoder, logits, loss, answers)

    x, mask = jnp.asarray(arrays["inputs_embeds"]), jnp.asarray(arrays["attention_mask"] != 0)
    labels = jnp.asarray(np.maximum(arrays["labels"], 0), jnp.int32)
    # Logits after the end of an answer are ignored, and the original masks their inputs.
    answer_mask = np.asarray(labels != 0)
    for tag in [name.removesuffix("_loss") for name in arrays if name.endswith("_loss")]:
        model = load_t5(arrays, adapters=tag != "base", scaling=meta["lora_scaling"])
        memory = nnx.jit(T5.encode)(model, x, mask)
        recorded = arrays[f"{tag}_encoder_last_hidden"]
        for sample in range(len(x)):
            with encoder.case(f"{tag}, prompt {sample}") as case:
                case.close(memory[sample], recorded[sample])
        predicted = np.asarray(nnx.jit(T5.decode)(model, shift_right(labels), memory, mask))
        with logits.case(f"{tag}, all of the first answer") as case:
            case.close(predicted[0][answer_mask[0]], arrays[f"{tag}_logits_b0"][answer_mask[0]])
        hot, total = predicted[:, :, arrays["logits_hot_ids"]], np.asarray(jax.nn.logsumexp(predicted, axis=-1))
        for sample in range(len(x)):
            with logits.case(f"{tag}, answer {sample}") as case:
                sample_mask = answer_mask[sample]
                case.close(hot[sample][sample_mask], arrays[f"{tag}_logits_hot"][sample][sample_mask])
                case.close(total[sample][sample_mask], arrays[f"{tag}_logits_logsumexp"][sample][sample_mask])
                case.same(predicted[sample][sample_mask].argmax(axis=-1), arrays[f"{tag}_argmax"][sample][sample_mask])
        with loss.case(tag) as case:
            # The original averages over the tokens of the batch, `answer_loss` over those of each answer.
            losses = answer_loss(jnp.asarray(predicted), labels)
            case.close(np.average(losses, weights=answer_mask.sum(axis=1)), arrays[f"{tag}_loss"])
        for name in list(arrays):
            if name_match := re.fullmatch(rf"{tag}_gen_b(\d+)_new(\d+)_min(\d+)", name):
                with answers.case(f"{tag}, {name}") as case:
                    beams, length, min_length = map(int, name_match.groups())
                    ours = search_answers(
                        model, memory, mask, beams=beams, length=length, min_length=min_length, behaviour=behaviour
                    )
                    case.same(as_sequences(ours.tokens[:, 0], arrays[name].shape[1]), arrays[name])
                    if f"{name}_scores" in arrays:
                        case.close(ours.score[:, 0], arrays[f"{name}_scores"], "score")

    activation = Group("03_t5/activation", 2e-6)  # two erfs in float32
    yield activation
    with activation.case("gate") as case:
        case.close(gelu(jnp.asarray(arrays["act_x"])), arrays["act_y_reference"])
    buckets = Group("03_t5/relative positions")
    yield buckets
    distance = jnp.asarray(arrays["rel_positions"], jnp.int32)[None]
    for name, both_ways in (("bidirectional", True), ("unidirectional", False)):
        with buckets.case(name) as case:
            case.same(relative_position_bucket(distance, bidirectional=both_ways)[0], arrays[f"rel_bucket_{name}"])


def beams(folder: RecordingFolder) -> Iterator[Group]:
    """Compare beam search with both length conventions of transformers."""
    model = load_t5(folder.arrays("03_t5"), adapters=False)
    for file in folder.files("03_t5_beam*.npz"):
        yield from _beams(file, folder.arrays(file), model, folder.optional_settings(file))


def _beams(file: str, arrays: RecordedArrays, model: T5, settings: Mapping[str, Any]) -> Iterator[Group]:
    x = jnp.asarray(arrays["inputs_embeds"])
    mask = jnp.ones(x.shape[:2], bool)
    memory = nnx.jit(T5.encode)(model, x, mask)
    for name in [name for name in arrays if name.startswith("seq_transformers_")]:
        version = name.removeprefix("seq_transformers_")
        group = Group(f"{file}/transformers {version.replace('_', '.')}", SCORES, is_absolute=True)
        yield group
        numbers = tuple(int(part) for part in version.split("_")[:2])
        behaviour: Behaviour = "reference" if numbers <= LENGTH_COUNTS_START else "default"
        width = arrays[name].shape[1]
        length = settings.get("max_new_tokens", width - 1)
        ours = search_answers(
            model, memory, mask, beams=settings.get("num_beams", BEAMS), length=length, behaviour=behaviour
        )
        for number, sequence in enumerate(as_sequences(ours.tokens[:, 0], width)):
            with group.case(f"prompt {number}") as case:
                case.same(sequence, arrays[name][number])
                case.close(ours.score[number, 0], arrays[f"score_{version}"][number], "score")


def load_t5(arrays: sizes.Tensors, *, adapters: bool, scaling: float = 1.0) -> T5:
    """Return the recorded T5, with adapters scaled by `scaling` or without."""
    tensors = {
        name.removeprefix("t5_model.").removeprefix("base_model.model."): arrays[name]
        for name in arrays
        if name.startswith("t5_model.")
    }
    config, adapter = sizes.t5(tensors), sizes.lora(tensors, scaling) if adapters else None

    def make() -> T5:
        model = T5(config, rngs=nnx.Rngs(0))
        if adapter:
            lora.add_adapters(model, adapter, rngs=nnx.Rngs(0))
        return model

    selected = {name: tensor for name, tensor in tensors.items() if adapters or "lora_" not in name}
    return recordings_io.load_state_dict(nnx.eval_shape(make), t5_names.key_mapping(lora=adapters), selected)


def search_answers(
    model: T5,
    memory: jax.Array,
    mask: jax.Array,
    *,
    beams: int,
    length: int,
    min_length: int = 1,
    behaviour: Behaviour = "reference",
) -> BeamSearchOutput:
    """Run the jitted beam search; `length` is the maximal number of tokens."""

    def search(model: T5, memory: jax.Array, mask: jax.Array) -> BeamSearchOutput:
        return beam_search(
            model, memory, mask, num_beams=beams, max_length=length, min_length=min_length, behaviour=behaviour
        )

    return nnx.jit(search)(model, memory, mask)


def as_sequences(tokens: jax.Array | np.ndarray, width: int) -> np.ndarray:
    """Return answers in the layout of transformers: after a start token, padded to `width` or to the longest."""
    tokens = np.asarray(tokens)
    needed = 1 + int((tokens != 0).any(axis=0).nonzero()[0].max(initial=-1) + 1)
    padded = np.pad(tokens, ((0, 0), (1, max(width - 1 - tokens.shape[1], 0))))
    return padded[:, : max(width, needed)]
