"""What a run learns from and is scored on: a prepared folder, opened as its config says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import numpy as np
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch
from calce_jax.checkpoints.restore import calce_config
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import this_host
from calce_jax.inference.predict_split import Predict, Split, ask, case_of, open_split
from calce_jax.input_pipeline import batches_an_epoch, make_iterator
from calce_jax.input_pipeline.batches import input_config
from calce_jax.input_pipeline.dataset import open_tables
from calce_jax.input_pipeline.feature_fingerprint import check_videos
from calce_jax.models.calce import CalceConfig
from calce_jax.moments.metrics import evaluate
from calce_jax.report.timeline import draw_timeline
from calce_jax.text.prompt import answer_tokens
from calce_jax.text.tokenizers import open_tokenizers
from calce_jax.training.loop import Evaluation
from calce_jax.video.decode import decode_jpeg

SHOWN_FRAMES = 10


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


def open_material(config: RunConfig) -> Material:
    """Open what a config names.

    Raises:
      TablesError: there is no such prepared folder or split.
      TokenizerError: a tokenizer is missing.
      InputError: a split is too small for a batch.
      FeaturesError: features are wanted, and are not those of this run, or not of all videos.
    """
    tokenizers = open_tokenizers(config)
    sizes = calce_config(config, t5_vocab=len(tokenizers.t5), bert_vocab=len(tokenizers.bert))
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
        answer_tokens=answer_tokens(tokenizers.t5, max(query.duration for query in judged.queries), config.behaviour),
    )


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
