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

from calce_jax.models.calce import Calce, CalceConfig, Selection
from calce_jax.text.prompt import PromptWriter, TextSizes
from data.shapes.batches import Pool
from data.shapes.pretrain.evaluate import judge, look_through
from data.shapes.pretrain.pointing_loss import Pointer
from data.shapes.pretrain.text_stage import Course, Teller, learn_to_read, prepare_to_read
from data.shapes.pretrain.vision_stage import learn_to_see, named
from data.shapes.scene import COLOURS, SHAPES

# Scenes of the demo have small seeds.
TRAIN_SEEDS, HELD_OUT_SEEDS = 10_000_000, 90_000_000


@dataclass(frozen=True)
class Lessons:
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
    reading: tuple[Course, ...] = (Course(1, 150, 72), Course(3, 150, 72), Course(8, 200, 112), Course(20, 2500, 160))
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
    1: Selection(stage=1, clusters=6, dilation=0),
    2: Selection(stage=2, clusters=6, dilation=1, filter_dilation=1),
}


def make_base(
    config: CalceConfig, t5: PreTrainedTokenizerBase, bert: PreTrainedTokenizerBase, lessons: Lessons
) -> tuple[Calce, dict[str, dict[str, float]]]:
    """Teach a model from nothing; also return its scores on held-out scenes, by stage."""
    model = Calce(config, rngs=nnx.Rngs(lessons.seed))
    teller = Teller(config.t5.width, words_of(t5), rngs=nnx.Rngs(lessons.seed + 1))
    pointer = Pointer(config.t5, rngs=nnx.Rngs(lessons.seed + 2))
    writers = (
        PromptWriter(t5, bert, TextSizes(lessons.frames // 2, 8, 24, 320, 32), stage=1),
        PromptWriter(t5, bert, TextSizes(lessons.frames, 8, 24, 320, 32), stage=2),
    )
    pool, held_out = (
        Pool(range(first, first + count), *writers)
        for first, count in ((TRAIN_SEEDS, lessons.scenes), (HELD_OUT_SEEDS, lessons.held_out))
    )
    prepare_to_read(model)
    learn_to_read(
        model,
        teller,
        pointer,
        pool,
        courses=lessons.reading,
        batch=lessons.reading_batch,
        rate=lessons.reading_rate,
        fine_every=lessons.fine_every,
        seed=lessons.seed + 3,
    )
    learn_to_see(
        model,
        teller,
        pool,
        SELECTIONS[1],
        steps=lessons.seeing_steps,
        batch=lessons.seeing_batch,
        captions=lessons.seeing_captions,
        rate=lessons.seeing_rate,
        seed=lessons.seed + 4,
    )
    logging.info("words told right of unseen frames: %.1f %%", named(model, teller, held_out))
    seen = look_through(model, held_out, SELECTIONS)
    length = lessons.length
    return model, {f"stage {stage}": judge(model, t5, held_out, seen, stage=stage, length=length) for stage in (1, 2)}


def words_of(t5: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the T5 ids of nothing, of the colours and of the shapes, in the order of `data.shapes.batches.said_at`."""
    words = [t5(word, add_special_tokens=False)["input_ids"] for word in (*COLOURS, *SHAPES)]
    if any(len(ids) != 1 for ids in words):
        raise ValueError(
            "The tokenizer splits the name of a colour or a shape; make it anew (data/tokenizers/make.py)."
        )
    nothing: Any = t5.unk_token_id
    return (nothing, *(ids[0] for ids in words))
