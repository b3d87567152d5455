"""The whole model at its smallest, with adapters that do something, and batches of made-up videos for it."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.batch import NUM_FIXED_SPANS, Batch
from calce_jax.config import OptimizerConfig
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.inference.prediction import StepConfig
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.models.selection import SelectionConfig
from calce_jax.models.structure import split_params
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.schedule import learning_rate
from calce_jax.training.train_step import compile_train_step, make_train_step

FRAMES, CAPTIONS, BERT_TOKENS, WINDOWS, ANSWER_TOKENS, VOCAB = 8, 3, 5, 2, 6, 40
IMAGE_SIZE, BUCKETS, MAX_SPAN = 28, (40, 96), 3
SIZES = CalceConfig(
    VitConfig(IMAGE_SIZE, 14, width=16, depth=2, heads=2, mlp_width=24),
    QFormerConfig(16, depth=2, heads=2, mlp_width=24, query_tokens=4, image_width=16, vocab=VOCAB, max_positions=16),
    T5Config(16, heads=2, head_width=8, mlp_width=24, encoder_depth=2, decoder_depth=2, vocab=VOCAB),
    LoraConfig(),
    compressed_query_tokens=1,
)
STEPS = {
    stage: StepConfig(
        SelectionConfig(stage=stage, clusters=2, dilation=2 - stage, max_captions=2, min_similarity=0.0),
        BUCKETS,
        num_beams=2,
        max_answer_length=ANSWER_TOKENS,
    )
    for stage in (1, 2)
}

# Stage 2, which covers stage 1, with one bucket of the two, since each is compiled.
TRAIN_STEPS = replace(STEPS[2], buckets=BUCKETS[-1:])
# Two micro-steps make one optimizer step: after the first, its state holds the gradients themselves. A large eps keeps
# Adam from magnifying the rounding errors of gradients near zero.
OPTIMIZER = make_optimizer(OptimizerConfig(accumulate=2, beta1=0.9, beta2=0.999, eps=1e-3, weight_decay=0.05))
RATE = partial(learning_rate, steps_per_epoch=2, epochs=4, peak=1e-2, floor=0.0, warmup_steps=0)


def compile_tiny_train_step(graph, state):
    """Return the compiled training step; the file that compiles it second finds it in the cache."""
    return compile_train_step(make_train_step(graph, TRAIN_STEPS, OPTIMIZER, RATE), state)


@cache
def abstract_model(sizes):
    """Return structure, and the shapes of trainables and frozen weights."""
    make_calce = partial(Calce, sizes)
    graph = nnx.graphdef(nnx.eval_shape(lambda: make_calce(rngs=nnx.Rngs(0))))
    return graph, jax.eval_shape(lambda: split_params(make_calce(rngs=nnx.Rngs(0)), "float32")[1:])


def make_model(sizes=SIZES):
    """Return structure, trainables and frozen weights, drawn by numpy: nothing is compiled, and no adapter is zero."""
    graph, abstract = abstract_model(sizes)
    rng = np.random.default_rng(0)

    def draw(name, shape):
        if name.endswith("/scale"):
            return np.ones(shape, np.float32)
        scale = shape[-2] ** -0.5 if len(shape) > 1 else 0.1
        # T5 does not scale its scores down, so its queries are small; and an adapter adds little.
        scale *= sizes.t5.head_width**-0.5 if name.endswith("/q/base/kernel") else 0.1 if name.endswith("/b") else 1.0
        return (scale * rng.normal(size=shape)).astype(np.float32)

    weights = {name: jnp.asarray(draw(name, leaf.shape)) for name, leaf in named_leaves(abstract).items()}
    return graph, *with_leaves(abstract, weights)


def make_batch(lengths, seed=1):
    """Return videos of so many frames each, with texts and answers of several lengths; the second says less."""
    count, rng = len(lengths), np.random.default_rng(seed)
    column = np.array(lengths)[:, None]
    frame_mask = np.arange(FRAMES) < column
    length = rng.integers(1, MAX_SPAN + 1, (count, FRAMES + CAPTIONS + NUM_FIXED_SPANS)).astype(np.int32)
    length[:, :FRAMES] *= frame_mask
    length[1, FRAMES + 1 + CAPTIONS - 1] = 0
    start = np.cumsum(length, axis=1, dtype=np.int32) - length
    caption_words = rng.integers(1, VOCAB, (count, CAPTIONS, BERT_TOKENS)).astype(np.int32)
    caption_words[1, CAPTIONS - 1] = 0
    labels = rng.integers(2, VOCAB, (count, ANSWER_TOKENS)).astype(np.int32)
    answer_lengths = np.maximum(2, column - 2)
    windows = np.zeros((count, WINDOWS, 2), np.float32)
    windows[:, 0, 1] = column[:, 0] / 2
    windows[0, 1] = lengths[0] - 2, lengths[0] - 1
    batch = Batch.zeros(
        count,
        frames=FRAMES,
        image_size=IMAGE_SIZE,
        captions=CAPTIONS,
        bert_tokens=BERT_TOKENS,
        text_tokens=length.shape[1] * MAX_SPAN,  # the same for every batch, so that a program is compiled once
        windows=WINDOWS,
        answer_tokens=ANSWER_TOKENS,
    )
    pixels = rng.integers(0, 256, batch.frames.shape, np.uint8)
    return replace(
        batch,
        frames=pixels * frame_mask[:, :, None, None, None].astype(np.uint8),
        frame_mask=frame_mask,
        times=np.arange(FRAMES, dtype=np.float32) * frame_mask,
        duration=frame_mask.sum(axis=1).astype(np.float32),
        tokens=rng.integers(3, VOCAB, batch.tokens.shape).astype(np.int32),
        spans=np.stack([start, length], axis=-1),
        query_bert_tokens=rng.integers(1, VOCAB, (count, BERT_TOKENS)).astype(np.int32),
        caption_bert_tokens=caption_words,
        is_speech_query=np.arange(count) == count - 1,
        has_speech=np.tile(np.arange(FRAMES) == 1, (count, 1)),
        stage1_windows=windows,
        window_mask=windows[:, :, 1] > 0,
        labels=np.where(np.arange(ANSWER_TOKENS) < answer_lengths, labels, 0).astype(np.int32),
        row_mask=np.ones(count, bool),
        example_index=np.arange(count, dtype=np.int32),
    )
