"""The tiny base model: what BLIP-2 and Flan-T5 are to the full model, made from nothing in two lessons.

    reading    T5 answers queries about scenes that are told to it in words.
    seeing     ViT and Q-Former learn to tell frames in those words; the text branch, which captions are meant.

It has never answered a query about a frame it saw: that is what the two stages are trained for. Nothing of it is from
outside: scenes, tokenizers and weights are all made here, from seeds.
"""

from dataclasses import dataclass
from typing import Any

from absl import logging
from flax import nnx
from transformers import PreTrainedTokenizerBase

from calce_jax.models.calce import Calce, CalceConfig, SelectionConfig
from calce_jax.text.prompt import PromptWriter, TextSizes
from data.shapes.batches import SceneDataset
from data.shapes.pretrain.evaluate import encode_scenes, evaluate_model
from data.shapes.pretrain.pointing_loss import PointingHead
from data.shapes.pretrain.text_stage import CurriculumStage, FrameTextEmbedder, init_text_stage, train_text_stage
from data.shapes.pretrain.vision_stage import train_vision_stage, word_accuracy
from data.shapes.scene import COLOURS, SHAPES

# Scenes of the demo have small seeds.
FIRST_TRAIN_SEED, FIRST_HELD_OUT_SEED = 10_000_000, 90_000_000


@dataclass(frozen=True)
class PretrainConfig:
    """How long and how fast.

    Fields:
      scenes, held_out: how many scenes are learnt from, and how many judge.
      reading: courses of the first lesson: how many frames are told, for how many steps, in prompts of what length.
      reading_batch: in queries.
      seeing_batch, seeing_captions: in frames, and in queries whose captions are compared.
      fine_every: one in so many batches has the prompts of stage 2.
      frames: of a video in stage 2, twice those of stage 1.
      length: of the prompts that judge, in tokens.
    """

    scenes: int = 3000
    held_out: int = 60
    reading: tuple[CurriculumStage, ...] = (
        CurriculumStage(1, 150, 72),
        CurriculumStage(3, 150, 72),
        CurriculumStage(8, 200, 112),
        CurriculumStage(20, 2500, 160),
    )
    reading_batch: int = 32
    reading_rate: float = 3e-3
    seeing_steps: int = 800
    seeing_batch: int = 128
    seeing_captions: int = 16
    seeing_rate: float = 2e-3
    fine_every: int = 3
    frames: int = 40
    length: int = 208
    seed: int = 0


SELECTIONS = {
    1: SelectionConfig(stage=1, clusters=6, dilation=0),
    2: SelectionConfig(stage=2, clusters=6, dilation=1, filter_dilation=1),
}


def pretrain_base_model(
    config: CalceConfig, t5: PreTrainedTokenizerBase, bert: PreTrainedTokenizerBase, pretrain_config: PretrainConfig
) -> tuple[Calce, dict[str, dict[str, float]]]:
    """Teach a model from nothing; also return its scores on held-out scenes, by stage."""
    model = Calce(config, rngs=nnx.Rngs(pretrain_config.seed))
    embedder = FrameTextEmbedder(config.t5.width, word_token_ids(t5), rngs=nnx.Rngs(pretrain_config.seed + 1))
    pointing_head = PointingHead(config.t5, rngs=nnx.Rngs(pretrain_config.seed + 2))
    writers = (
        PromptWriter(t5, bert, TextSizes(pretrain_config.frames // 2, 8, 24, 320, 32), stage=1),
        PromptWriter(t5, bert, TextSizes(pretrain_config.frames, 8, 24, 320, 32), stage=2),
    )
    train_dataset, held_out_dataset = (
        SceneDataset(range(first, first + count), *writers)
        for first, count in (
            (FIRST_TRAIN_SEED, pretrain_config.scenes),
            (FIRST_HELD_OUT_SEED, pretrain_config.held_out),
        )
    )
    init_text_stage(model)
    train_text_stage(
        model,
        embedder,
        pointing_head,
        train_dataset,
        curriculum=pretrain_config.reading,
        batch_size=pretrain_config.reading_batch,
        peak_learning_rate=pretrain_config.reading_rate,
        stage2_every=pretrain_config.fine_every,
        seed=pretrain_config.seed + 3,
    )
    train_vision_stage(
        model,
        embedder,
        train_dataset,
        SELECTIONS[1],
        steps=pretrain_config.seeing_steps,
        batch_size=pretrain_config.seeing_batch,
        caption_batch_size=pretrain_config.seeing_captions,
        peak_learning_rate=pretrain_config.seeing_rate,
        seed=pretrain_config.seed + 4,
    )
    logging.info("words told right of unseen frames: %.1f %%", word_accuracy(model, embedder, held_out_dataset))
    encoded = encode_scenes(model, held_out_dataset, SELECTIONS)
    length = pretrain_config.length
    return model, {
        f"stage {stage}": evaluate_model(model, t5, held_out_dataset, encoded, stage=stage, prompt_length=length)
        for stage in (1, 2)
    }


def word_token_ids(t5: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the T5 ids of nothing, of the colours and of the shapes, in the order of `data.shapes.batches.frame_words`."""
    words = [t5(word, add_special_tokens=False)["input_ids"] for word in (*COLOURS, *SHAPES)]
    if any(len(ids) != 1 for ids in words):
        raise ValueError(
            "The tokenizer splits the name of a colour or a shape; make it anew (data/tokenizers/make.py)."
        )
    nothing: Any = t5.unk_token_id
    return (nothing, *(ids[0] for ids in words))
