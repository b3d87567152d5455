"""What a run learns from and is scored on: a prepared folder, opened as its config says."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import logging
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch
from calce_jax.hosts import this_host
from calce_jax.inference import Answer, read_answers
from calce_jax.input_pipeline import InputConfig, NoteCounter, batches_an_epoch, make_iterator
from calce_jax.metrics import Case, evaluate
from calce_jax.models.calce import CalceConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.prompt import longest_answer
from calce_jax.report.timeline import draw_timeline
from calce_jax.step import Prediction
from calce_jax.tokenizers import load_bert, load_t5
from calce_jax.training.config import RunConfig
from calce_jax.training.loop import Evaluation
from calce_jax.training.vision import check_features, check_videos
from calce_jax.video import decode_jpeg
from data.moments import Query, Tables, open_tables

# Gives the predictions of batches in their order.
Predict = Callable[[Iterable[Batch]], Iterator[Prediction]]
# What the original generates at most, whatever the video's length.
REFERENCE_ANSWER_TOKENS = 70
SHOWN_FRAMES = 10


@dataclass(frozen=True)
class Split:
    """The queries of one split, and the batches that ask them once, in order.

    Fields:
      tables: queries with their videos.
      queries: the queries alone.
      batches: makes a fresh iterator, from the given batch on.
    """

    tables: Tables
    queries: Sequence[Query]
    batches: Callable[[int], Iterable[Batch]]


@dataclass(frozen=True)
class Material:
    """A run's data and tokenizers.

    Fields:
      iterator: batches of the training split, without end.
      steps_per_epoch: batches of one epoch.
      query_ids: turns rows of the training split into query ids.
      evaluate: runs a prediction over the evaluation split, batch by batch, and scores it.
      sizes: of the model.
      answer_tokens: the longest answer that is generated.
    """

    iterator: grain.DatasetIterator[Batch]
    steps_per_epoch: int
    query_ids: Callable[[np.ndarray], list[str]]
    evaluate: Callable[[Predict], Evaluation]
    sizes: CalceConfig
    answer_tokens: int


@dataclass(frozen=True)
class Tokenizers:
    """T5's and BERT's."""

    t5: PreTrainedTokenizerBase
    bert: PreTrainedTokenizerBase


def open_material(config: RunConfig) -> Material:
    """Open what a config names.

    Raises:
      TablesError: there is no such prepared folder or split.
      TokenizerError: a tokenizer is missing.
      InputError: a split is too small for a batch.
      FeaturesError: features are wanted, and are not those of this run, or not of all videos.
    """
    tokenizers = open_tokenizers(config)
    sizes = calce_config(config, tokenizers)
    train = open_tables(config.data.directory, config.data.train_split)
    train_input = input_config(config, config.data.train_split, sizes, training=True)
    judged = open_split(config, config.data.eval_split, tokenizers, sizes)
    asked = list(train.queries())
    check_videos(config, config.data.train_split, [query.video for query in asked])
    ids = [str(query.qid) for query in asked]
    return Material(
        iterator=make_iterator(train_input, tokenizers.t5, tokenizers.bert, examples=train, **this_host()),
        steps_per_epoch=batches_an_epoch(len(train), train_input),
        query_ids=lambda rows: [ids[int(row)] for row in rows],
        evaluate=partial(evaluate_split, config, judged, tokenizers.t5),
        sizes=sizes,
        answer_tokens=answer_tokens(config, judged.queries, tokenizers.t5),
    )


def open_tokenizers(config: RunConfig) -> Tokenizers:
    """Load the tokenizers that a config names."""
    return Tokenizers(load_t5(config.text.t5_tokenizer), load_bert(config.text.bert_tokenizer))


def open_split(config: RunConfig, split: str, tokenizers: Tokenizers, sizes: CalceConfig) -> Split:
    """Open one split for asking all its queries once.

    Raises:
      TablesError: there is no such prepared folder or split.
      FeaturesError: features are wanted, and are not those of this run, or not of all videos.
    """
    tables = open_tables(config.data.directory, split)
    queries = list(tables.queries())
    check_features(config, sizes)
    check_videos(config, split, [query.video for query in queries])
    inputs = input_config(config, split, sizes, training=False)

    def batches(first: int) -> Iterable[Batch]:
        return make_iterator(inputs, tokenizers.t5, tokenizers.bert, examples=tables, first_batch=first, **this_host())

    return Split(tables, queries, batches)


def calce_config(config: RunConfig, tokenizers: Tokenizers) -> CalceConfig:
    """Return the sizes of the model that a config names."""
    lora = LoraConfig(rank=config.lora.rank, alpha=config.lora.alpha, drop=config.lora.dropout)
    named = CalceConfig.named(
        config.model.size,
        lora,
        config.model.compute_dtype,
        t5_vocab=len(tokenizers.t5),
        bert_vocab=len(tokenizers.bert),
    )
    return replace(named.attending(config.model.attention), ln_vision=config.model.ln_vision)


def input_config(config: RunConfig, split: str, sizes: CalceConfig, *, training: bool) -> InputConfig:
    """Return how a split is read: shuffled, repeated and cropped for training; once, in order and whole otherwise."""
    return InputConfig(
        folder=config.data.directory,
        split=split,
        stage=config.stage,
        frames=config.data.frames,
        image_size=sizes.vit.image_size,
        batch_size=config.data.batch if training else config.data.eval_batch,
        captions=config.data.captions,
        words=config.text.words,
        text_tokens=config.text.text_tokens,
        windows=config.text.windows,
        answer_tokens=config.text.answer_tokens,
        max_text=config.text.max_text,
        augment=training and config.data.augment,
        shuffle=training,
        remainder="drop" if training else "fill",
        epochs=None if training else 1,
        seed=config.seed,
        workers=config.data.workers if training else 0,
        use_captions=config.data.use_captions,
        behaviour=config.behaviour,
        features=config.data.features,
    )


def answer_tokens(config: RunConfig, queries: Sequence[Query], t5: PreTrainedTokenizerBase) -> int:
    """Return how many tokens an answer may have: what the longest video allows; under "reference" always 70."""
    if config.behaviour == "reference":
        return REFERENCE_ANSWER_TOKENS
    return longest_answer(t5, max(query.duration for query in queries))


def ask(
    config: RunConfig, split: Split, t5: PreTrainedTokenizerBase, predict: Predict, first: int = 0
) -> Iterator[Answer]:
    """Ask every query of a split, from batch `first` on; log what did not fit the shapes of a batch."""
    notes = NoteCounter()
    for prediction in predict(split.batches(first)):
        notes.add(np.asarray(prediction.about.row), np.asarray(prediction.about.notes))
        yield from read_answers(prediction, t5, by=config.generation.rank, behaviour=config.behaviour)
    for line in notes.lines(lambda rows: [str(split.queries[int(row)].qid) for row in rows]):
        logging.warning("%s: %s", split.tables.split, line)


def case_of(query: Query, answer: Answer) -> Case:
    """Return an answer beside the truth."""
    return Case(query.qid, answer.moments.windows, query.windows.tolist(), malformed=answer.moments.status != "exact")


def evaluate_split(config: RunConfig, split: Split, t5: PreTrainedTokenizerBase, predict: Predict) -> Evaluation:
    """Ask, score by the original's protocol, and draw some of the answers."""
    answers = list(ask(config, split, t5, predict))
    scores = evaluate([case_of(split.queries[answer.row], answer) for answer in answers])["reference"]
    metrics = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
    images: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    for answer in answers[:: max(len(answers) // max(config.loop.samples, 1), 1)][: config.loop.samples]:
        example = split.tables[answer.row]
        frames = _some(example.keyframes)
        predicted = {f"stage {config.stage}": answer.moments.windows}
        images[str(example.qid)] = draw_timeline(example.windows.tolist(), predicted, example.duration, frames)
        texts[str(example.qid)] = f"**{example.query}** true {example.windows.tolist()}, answer `{answer.moments.text}`"
    return Evaluation(metrics, images, texts)


def _some(keyframes: Sequence[bytes]) -> Any:
    places = np.linspace(0, len(keyframes) - 1, min(SHOWN_FRAMES, len(keyframes))).round().astype(int)
    return np.stack([decode_jpeg(keyframes[place]) for place in places])
