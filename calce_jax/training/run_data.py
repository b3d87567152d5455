"""The data of a training run: the prepared folder that its config names, batches of it, and its evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import grain
import numpy as np
from jaxtyping import UInt8

from calce_jax.batch import Batch
from calce_jax.checkpoints.restore import calce_config
from calce_jax.checkpoints.workdir import check_base_file
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import process_info
from calce_jax.inference.predict_split import (
    DatasetSplit,
    PredictFn,
    make_case,
    open_split,
    predict_answers,
    to_prediction,
)
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.dataset import TablesError, open_dataset
from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.feature_fingerprint import check_videos
from calce_jax.input_pipeline.input_config import batches_per_epoch, input_config
from calce_jax.input_pipeline.table_fingerprint import Fingerprint, table_fingerprint
from calce_jax.models.answer_grammar import AnswerGrammar
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.moments.metrics import evaluate_cases
from calce_jax.moments.metrics.presence import presence_case, presence_scores
from calce_jax.report.timeline import draw_timeline
from calce_jax.text.answer_grammar import answer_grammar
from calce_jax.text.prompt import answer_pieces, max_answer_tokens
from calce_jax.text.text_tokenizer import TextTokenizer
from calce_jax.text.tokenizers import open_tokenizers
from calce_jax.training.loop import EvalResult
from calce_jax.video.decode import decode_jpeg

MAX_TIMELINE_FRAMES = 10


@dataclass(frozen=True)
class RunData:
    """A run's data and tokenizers.

    Fields:
      train_iterator: this host's parts of the training batches, repeated without end.
      steps_per_epoch: batches of one epoch.
      query_ids: turns rows of the training split into query ids.
      evaluate: predicts every query of the evaluation split with the given function, and scores the predictions.
      model_config: sizes of the model.
      max_answer_tokens: length limit of generated answers, in T5 tokens.
      grammar: of generated answers, see `StepConfig`.
      tables: fingerprint of each split's queries, see `calce_jax.input_pipeline.table_fingerprint`.
      answer_pieces: text of every T5 token, see `calce_jax.text.prompt.answer_pieces`; for training by rewards.
    """

    train_iterator: grain.DatasetIterator[Batch]
    steps_per_epoch: int
    query_ids: Callable[[np.ndarray], list[str]]
    evaluate: Callable[[PredictFn], EvalResult]
    model_config: CalceConfig
    max_answer_tokens: int
    grammar: AnswerGrammar | None = None
    tables: Mapping[str, Fingerprint] = field(default_factory=dict)
    answer_pieces: Sequence[str] = ()


def open_run_data(config: RunConfig) -> RunData:
    """Open the tokenizers and both splits of a config.

    Raises:
      CheckpointError: there is no file of base weights; told first, since it takes longest to get.
      TablesError: there is no such prepared folder or split; the evaluated split has no true windows; or stage 2 is to
        be trained on tables that have no windows of stage 1.
      TokenizerError: a tokenizer is missing.
      InputError: a split has fewer queries than a batch.
      FeaturesError: `config.data.features` holds features of another model, or not of all videos.
    """
    check_base_file(config.weights.base)
    tokenizers = open_tokenizers(config)
    model_config = calce_config(config, t5_vocab=len(tokenizers.t5), bert_vocab=len(tokenizers.bert))
    train_dataset = open_dataset(config.data.directory, config.data.train_split)
    train_input = input_config(config, config.data.train_split, model_config, training=True)
    eval_split = open_split(config, config.data.eval_split, tokenizers, model_config)
    train_queries = list(train_dataset.queries())
    check_true_windows(config, eval_split.queries)
    check_stage1_windows(config, config.data.train_split, train_queries)
    check_stage1_windows(config, config.data.eval_split, eval_split.queries)
    check_videos(config, config.data.train_split, [query.video for query in train_queries])
    query_ids = [str(query.qid) for query in train_queries]
    max_duration = max(query.duration for query in eval_split.queries)
    return RunData(
        train_iterator=make_iterator(
            train_input, tokenizers.t5, tokenizers.bert, examples=train_dataset, **process_info()
        ),
        steps_per_epoch=batches_per_epoch(len(train_dataset), train_input),
        query_ids=lambda rows: [query_ids[int(row)] for row in rows],
        evaluate=partial(evaluate_split, config, eval_split, tokenizers.t5),
        model_config=model_config,
        max_answer_tokens=max_answer_tokens(tokenizers.t5, max_duration, config.behaviour),
        grammar=answer_grammar(config, tokenizers.t5, max_duration),
        tables={
            config.data.train_split: table_fingerprint(
                train_queries, config.stage, with_facts=config.data.negatives > 0 or config.data.mix > 0
            ),
            config.data.eval_split: table_fingerprint(eval_split.queries, config.stage),
        },
        answer_pieces=answer_pieces(tokenizers.t5),
    )


def check_true_windows(config: RunConfig, queries: Sequence[Query]) -> None:
    """Check that some query of the evaluated split has true windows, before the first evaluation needs them.

    Raises:
      TablesError: none has.
    """
    if not any(len(query.windows) for query in queries):
        raise TablesError(
            f"no query of {config.data.eval_split} in {config.data.directory} has true windows",
            "evaluate another split, with --config.data.eval_split",
        )


def check_stage1_windows(config: RunConfig, split: str, queries: Sequence[Query]) -> None:
    """Check, for stage 2, that windows of stage 1 were merged into a split; single queries may lack them.

    Raises:
      TablesError: no query has any. Stage 2 would look at the whole video everywhere.
    """
    if config.stage == 2 and all(query.stage1_windows is None for query in queries):
        raise TablesError(
            f"the tables in {config.data.directory} have no windows of stage 1 in {split}",
            "run `calce infer` on stage 1, `calce merge`, then `calce prepare`",
        )


def evaluate_split(config: RunConfig, split: DatasetSplit, t5: TextTokenizer, predict: PredictFn) -> EvalResult:
    """Predict every query of a split, score by the original's protocol, and draw `config.loop.samples` predictions.

    Queries that do not happen in their video count in "AUROC" and the other scores of
    `calce_jax.moments.metrics.presence` alone; those whose windows are not known are predicted and not scored.
    """
    answers = list(predict_answers(config, split, t5, predict))
    pairs = [(split.queries[answer.row], answer) for answer in answers]
    scores = evaluate_cases([make_case(query, answer) for query, answer in pairs if len(query.windows)])["reference"]
    if any(query.is_absent for query, _ in pairs):
        known = [(query, answer) for query, answer in pairs if query.is_absent or len(query.windows)]
        scores |= presence_scores(
            [
                presence_case(to_prediction(query, answer.moments), is_present=not query.is_absent)
                for query, answer in known
            ]
        )
    metrics = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
    images: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    stride = max(len(answers) // max(config.loop.samples, 1), 1)
    for answer in answers[::stride][: config.loop.samples]:
        example = split.dataset[answer.row]
        frames = _sample_frames(example.keyframes)
        predicted = {f"stage {config.stage}": answer.moments.windows}
        images[str(example.qid)] = draw_timeline(example.windows.tolist(), predicted, example.duration, frames)
        texts[str(example.qid)] = f"**{example.query}** true {example.windows.tolist()}, answer `{answer.moments.text}`"
    return EvalResult(metrics, images, texts)


def _sample_frames(keyframes: Sequence[bytes]) -> UInt8[np.ndarray, "T H W 3"]:
    """Decode at most `MAX_TIMELINE_FRAMES` evenly spaced JPEG frames."""
    indices = np.linspace(0, len(keyframes) - 1, min(MAX_TIMELINE_FRAMES, len(keyframes))).round().astype(int)
    return np.stack([decode_jpeg(keyframes[index]) for index in indices])
