"""Settings of a prediction, and its results, without the model that computes them."""

from dataclasses import dataclass

import jax

from calce_jax.batch import Batch
from calce_jax.config import Behaviour, RematPolicy, RunConfig
from calce_jax.models.answer_grammar import AnswerGrammar
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.selection import PromptSelection, SelectionConfig


@dataclass(frozen=True)
class StepConfig:
    """Static settings of the training step and of the prediction.

    Fields:
      selection: of key frames and captions.
      buckets: prompt lengths in tokens, ascending. A prompt longer than the last one is truncated at its end, and
        counted in the metric "truncated".
      remat: what the backward pass recomputes.
      num_beams, max_answer_length: of the beam search; the length in tokens includes the end token.
      grammar: of the answers that the beam search may give; None allows any text.
    """

    selection: SelectionConfig
    buckets: tuple[int, ...]
    remat: RematPolicy = "none"
    num_beams: int = 5
    max_answer_length: int = 70
    grammar: AnswerGrammar | None = None

    @property
    def behaviour(self) -> Behaviour:
        """The behaviour of the selection, which is that of the whole run."""
        return self.selection.behaviour


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BatchPrediction:
    """Prediction of a batch; every host gets all rows.

    Fields:
      answers: beams of generated tokens.
      prompt_selection: frames and captions of each prompt.
      batch: that was predicted, without frames and features.
    """

    answers: BeamSearchOutput
    prompt_selection: PromptSelection
    batch: Batch


def step_config(config: RunConfig, max_answer_tokens: int, grammar: AnswerGrammar | None = None) -> StepConfig:
    """Return the settings of a run's training step and prediction.

    Args:
      config: of the run.
      max_answer_tokens: length limit of answers in T5 tokens, the end token included.
      grammar: from `calce_jax.text.answer_grammar.answer_grammar`.
    """
    return StepConfig(
        selection=SelectionConfig(
            stage=config.stage,
            mode=config.keyframes.mode,
            clusters=config.keyframes.clusters,
            dilation=config.keyframes.dilation,
            filter_dilation=config.keyframes.filter_dilation,
            caption_block=config.data.captions,
            behaviour=config.behaviour,
        ),
        buckets=config.text.buckets,
        remat=config.model.remat,
        num_beams=config.generation.beams,
        max_answer_length=max_answer_tokens,
        grammar=grammar,
    )
