"""Pretrain the tiny base model, which is to the tiny model what BLIP-2 and Flan-T5 are to the full one.

    text stage     T5 learns its lessons (`lessons.py`) about scenes that are described to it in words.
    vision stage   ViT and Q-Former learn to encode frames as those words; the Q-Former's text branch learns which
                   captions a query is about.

The base model has never answered a query about a frame: the two stages of CALCE train that. Scenes, tokenizers and
weights are all made from seeds, without data from elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from absl import logging
from flax import nnx

from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.selection import SelectionConfig
from calce_jax.text.prompt import PromptWriter, TextSizes
from calce_jax.text.text_tokenizer import TextTokenizer
from data.shapes.batches import SceneDataset
from data.shapes.pretrain.evaluate import encode_scenes, evaluate_lessons, evaluate_model
from data.shapes.pretrain.lessons import FIRST_SHARES, LAST_SHARES, Lesson, LessonDataset
from data.shapes.pretrain.pointing_loss import PointingHead
from data.shapes.pretrain.text_stage import (
    CurriculumStage,
    FrameTextEmbedder,
    Layout,
    init_text_stage,
    train_text_stage,
)
from data.shapes.pretrain.vision_stage import train_vision_stage, word_accuracy
from data.shapes.scene import COLOURS, LONG, PLAIN, SHAPES, SHORT, Scene, make_scene

# Seeds of datasets are smaller, see `data.shapes.write.scene_seed`.
FIRST_TRAIN_SEED, FIRST_HELD_OUT_SEED = 10_000_000, 90_000_000


LAYOUTS: tuple[Layout, ...] = ("dense", "sparse", "stage2", "sparse")


@dataclass(frozen=True)
class PretrainRound:
    """A text stage and a vision stage.

    Fields:
      curriculum, shares: of the text stage: how many frames, and of each lesson its share.
      vision_steps: of the vision stage.
      text_learning_rate, vision_learning_rate: peaks.
    """

    curriculum: tuple[CurriculumStage, ...]
    shares: Mapping[Lesson, float]
    vision_steps: int
    text_learning_rate: float
    vision_learning_rate: float


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and learning rates.

    Fields:
      num_scenes, num_held_out: number of training scenes, and of scenes for evaluation.
      rounds: one after the other, each with a pointing head of its own.
      text_batch_size: queries.
      vision_batch_size, caption_batch_size: frames, and queries whose captions are compared.
      frames: of a video in stage 2, twice those of stage 1.
      prompt_length: of the evaluation, tokens.
    """

    num_scenes: int = 3000
    num_held_out: int = 60
    rounds: tuple[PretrainRound, ...] = (
        PretrainRound(
            curriculum=(
                CurriculumStage(1, 150, 72),
                CurriculumStage(3, 150, 72),
                CurriculumStage(8, 200, 112),
                CurriculumStage(20, 4500, 160, LAYOUTS),
            ),
            shares=FIRST_SHARES,
            vision_steps=700,
            text_learning_rate=3e-3,
            vision_learning_rate=2e-3,
        ),
        PretrainRound(
            curriculum=(CurriculumStage(20, 1400, 160, LAYOUTS),),
            shares=LAST_SHARES,
            vision_steps=220,
            text_learning_rate=1.5e-3,
            vision_learning_rate=1e-3,
        ),
    )
    text_batch_size: int = 32
    vision_batch_size: int = 128
    caption_batch_size: int = 16
    frames: int = 40
    prompt_length: int = 208
    seed: int = 0


SELECTIONS = {
    1: SelectionConfig(stage=1, clusters=6, dilation=0),
    2: SelectionConfig(stage=2, clusters=6, dilation=1, filter_dilation=1),
}


def pretrain_base_model(
    config: CalceConfig, t5: TextTokenizer, bert: TextTokenizer, pretrain_config: PretrainConfig
) -> tuple[Calce, dict[str, dict[str, float]]]:
    """Return the pretrained model and its held-out scores, {"stage 1": {metric: percent}, "stage 2": ...}."""
    model = Calce(config, rngs=nnx.Rngs(pretrain_config.seed))
    embedder = FrameTextEmbedder(config.t5.width, word_token_ids(t5), rngs=nnx.Rngs(pretrain_config.seed + 1))
    sizes = (
        TextSizes(pretrain_config.frames // 2, 8, 24, 320, 32),
        TextSizes(pretrain_config.frames, 8, 24, 320, 32),
    )
    scenes = draw_scenes(FIRST_TRAIN_SEED, pretrain_config.num_scenes)
    lessons = LessonDataset(scenes, t5, bert, sizes)
    held_out_scenes = [make_scene(FIRST_HELD_OUT_SEED + number) for number in range(pretrain_config.num_held_out)]
    held_out_lessons = LessonDataset(held_out_scenes, t5, bert, sizes)
    held_out_dataset = SceneDataset(
        held_out_scenes, PromptWriter(t5, bert, sizes[0], stage=1), PromptWriter(t5, bert, sizes[1], stage=2)
    )
    init_text_stage(model)
    lesson_scores: dict[str, float] = {}
    for number, part in enumerate(pretrain_config.rounds):
        seed = pretrain_config.seed + 10 * number
        train_text_stage(
            model,
            embedder,
            PointingHead(config.t5, rngs=nnx.Rngs(seed + 2)),
            lessons,
            curriculum=part.curriculum,
            shares=part.shares,
            batch_size=pretrain_config.text_batch_size,
            peak_learning_rate=part.text_learning_rate,
            seed=seed + 3,
        )
        lesson_scores = evaluate_lessons(
            model, embedder, t5, held_out_lessons, prompt_length=part.curriculum[-1].length
        )
        logging.info("held-out lessons: %s", lesson_scores)
        train_vision_stage(
            model,
            embedder,
            lessons,
            SELECTIONS[1],
            steps=part.vision_steps,
            batch_size=pretrain_config.vision_batch_size,
            caption_batch_size=pretrain_config.caption_batch_size,
            peak_learning_rate=part.vision_learning_rate,
            seed=seed + 4,
        )
    logging.info("accuracy of words of held-out frames: %.1f %%", word_accuracy(model, embedder, held_out_dataset))
    encoded = encode_scenes(model, held_out_dataset, SELECTIONS)
    length = pretrain_config.prompt_length
    return model, {"lessons": lesson_scores} | {
        f"stage {stage}": evaluate_model(model, t5, held_out_dataset, encoded, stage=stage, prompt_length=length)
        for stage in (1, 2)
    }


def draw_scenes(first_seed: int, count: int) -> list[Scene]:
    """Return scenes of all lengths: Flan-T5 knows more numbers than a video of 40 s has seconds."""
    styles = (PLAIN, PLAIN, SHORT, PLAIN, PLAIN, LONG)
    return [make_scene(first_seed + number, styles[number % len(styles)]) for number in range(count)]


def word_token_ids(t5: TextTokenizer) -> tuple[int, ...]:
    """Return the T5 ids of the unknown token, the colours and the shapes, indexed by `data.shapes.batches.frame_words`.

    Raises:
      ValueError: a name is more than one token.
    """
    words = [t5(word, add_special_tokens=False)["input_ids"] for word in (*COLOURS, *SHAPES)]
    if any(len(ids) != 1 for ids in words):
        raise ValueError(
            "the T5 tokenizer splits the name of a colour or a shape; run `python -m data.tokenizers.make`"
        )
    empty_id: Any = t5.unk_token_id
    return (empty_id, *(ids[0] for ids in words))
