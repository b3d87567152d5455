"""Pretrain the tiny base model, which is to the tiny model what BLIP-2 and Flan-T5 are to the full one.

    text stage     T5 learns to answer queries about scenes that are described to it in words.
    vision stage   ViT and Q-Former learn to encode frames as those words; the Q-Former's text branch learns which
                   captions a query is about.

The base model has never answered a query about a frame: the two stages of CALCE train that. Scenes, tokenizers and
weights are all made from seeds, without data from elsewhere.
"""

from dataclasses import dataclass
from typing import Any

from absl import logging
from flax import nnx

from calce_jax.models.calce import Calce, CalceConfig, SelectionConfig
from calce_jax.text.prompt import PromptWriter, TextSizes
from calce_jax.text.text_tokenizer import TextTokenizer
from data.shapes.batches import SceneDataset
from data.shapes.pretrain.evaluate import encode_scenes, evaluate_model
from data.shapes.pretrain.pointing_loss import PointingHead
from data.shapes.pretrain.text_stage import CurriculumStage, FrameTextEmbedder, init_text_stage, train_text_stage
from data.shapes.pretrain.vision_stage import train_vision_stage, word_accuracy
from data.shapes.scene import COLOURS, SHAPES

# Seeds of datasets are smaller, see `data.shapes.write.scene_seed`.
FIRST_TRAIN_SEED, FIRST_HELD_OUT_SEED = 10_000_000, 90_000_000


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and learning rates of both stages.

    Fields:
      num_scenes, num_held_out: number of training scenes, and of scenes for evaluation.
      curriculum: of the text stage.
      text_batch_size: queries.
      text_learning_rate, vision_learning_rate: peaks.
      vision_batch_size, caption_batch_size: frames, and queries whose captions are compared.
      stage2_every: one in so many text batches has the prompts of stage 2.
      frames: of a video in stage 2, twice those of stage 1.
      prompt_length: of the evaluation, tokens.
    """

    num_scenes: int = 3000
    num_held_out: int = 60
    curriculum: tuple[CurriculumStage, ...] = (
        CurriculumStage(1, 150, 72),
        CurriculumStage(3, 150, 72),
        CurriculumStage(8, 200, 112),
        CurriculumStage(20, 2500, 160),
    )
    text_batch_size: int = 32
    text_learning_rate: float = 3e-3
    vision_steps: int = 800
    vision_batch_size: int = 128
    caption_batch_size: int = 16
    vision_learning_rate: float = 2e-3
    stage2_every: int = 3
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
    pointing_head = PointingHead(config.t5, rngs=nnx.Rngs(pretrain_config.seed + 2))
    writers = (
        PromptWriter(t5, bert, TextSizes(pretrain_config.frames // 2, 8, 24, 320, 32), stage=1),
        PromptWriter(t5, bert, TextSizes(pretrain_config.frames, 8, 24, 320, 32), stage=2),
    )
    train_dataset, held_out_dataset = (
        SceneDataset(range(first, first + count), *writers)
        for first, count in (
            (FIRST_TRAIN_SEED, pretrain_config.num_scenes),
            (FIRST_HELD_OUT_SEED, pretrain_config.num_held_out),
        )
    )
    init_text_stage(model)
    train_text_stage(
        model,
        embedder,
        pointing_head,
        train_dataset,
        curriculum=pretrain_config.curriculum,
        batch_size=pretrain_config.text_batch_size,
        peak_learning_rate=pretrain_config.text_learning_rate,
        stage2_every=pretrain_config.stage2_every,
        seed=pretrain_config.seed + 3,
    )
    train_vision_stage(
        model,
        embedder,
        train_dataset,
        SELECTIONS[1],
        steps=pretrain_config.vision_steps,
        batch_size=pretrain_config.vision_batch_size,
        caption_batch_size=pretrain_config.caption_batch_size,
        peak_learning_rate=pretrain_config.vision_learning_rate,
        seed=pretrain_config.seed + 4,
    )
    logging.info("accuracy of words of held-out frames: %.1f %%", word_accuracy(model, embedder, held_out_dataset))
    encoded = encode_scenes(model, held_out_dataset, SELECTIONS)
    length = pretrain_config.prompt_length
    return model, {
        f"stage {stage}": evaluate_model(model, t5, held_out_dataset, encoded, stage=stage, prompt_length=length)
        for stage in (1, 2)
    }


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
