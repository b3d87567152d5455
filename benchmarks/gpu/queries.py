"""A batch of random queries about random videos, without tokenizers, tables or codecs."""

from dataclasses import replace

import numpy as np

from calce_jax.batch import Batch
from calce_jax.config import RunConfig
from calce_jax.models.calce_sizes import CalceConfig

# Tokens of a caption, of the text with query and task, and of an answer; as in QVHighlights.
CAPTION_TOKENS, TEXT_TOKENS, ANSWER_TOKENS = 16, 60, 40
DURATION_S = 150.0


def random_batch(run: RunConfig, model_config: CalceConfig, batch_size: int, *, captions: int = 16) -> Batch:
    """Return a host batch; every row has all frames, `captions` captions, an answer, and in stage 2 a window."""
    rng, frames = np.random.default_rng(0), run.data.frames
    blocks = run.data.caption_blocks if run.data.use_captions else 1
    max_captions = run.data.captions * blocks
    batch = Batch.zeros(
        batch_size,
        frames=frames,
        image_size=model_config.vit.image_size,
        captions=max_captions,
        bert_tokens=run.text.bert_tokens,
        text_tokens=run.text.text_tokens * blocks,
        windows=run.text.windows,
        answer_tokens=run.text.answer_tokens,
    )
    captions = min(captions, max_captions)
    # Times of frames; the end of the video part; captions; what stands for none; the end of their part; the text.
    absent = [0] * (max_captions - captions)
    lengths = np.array([1] * frames + [3] + [CAPTION_TOKENS] * captions + absent + [3, 1, TEXT_TOKENS])
    starts = np.cumsum(lengths) - lengths

    def ids(vocab: int, *shape: int) -> np.ndarray:
        return rng.integers(2, vocab, shape).astype(np.int32)

    def padded(array: np.ndarray, size: int) -> np.ndarray:
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])])

    sentence = min(CAPTION_TOKENS, run.text.bert_tokens)
    positions = np.array([*range(captions), *[-1] * len(absent)], np.int32)
    caption_ids = np.zeros_like(batch.caption_bert_tokens)
    caption_ids[:, :captions, :sentence] = ids(model_config.qformer.vocab, batch_size, captions, sentence)
    windows, window_mask = np.zeros_like(batch.stage1_windows), np.zeros_like(batch.window_mask)
    if run.stage == 2:
        windows[:, 0], window_mask[:, 0] = (0.2 * DURATION_S, 0.5 * DURATION_S), True
    answer = min(ANSWER_TOKENS, run.text.answer_tokens)
    return replace(
        batch,
        frames=rng.integers(0, 256, batch.frames.shape, dtype=np.uint8),
        frame_mask=np.ones_like(batch.frame_mask),
        times=np.tile(np.linspace(0, DURATION_S, frames, endpoint=False, dtype=np.float32), (batch_size, 1)),
        duration=np.full_like(batch.duration, DURATION_S),
        tokens=ids(model_config.t5.vocab, *batch.tokens.shape),
        spans=np.tile(np.stack([starts, lengths], axis=-1).astype(np.int32), (batch_size, 1, 1)),
        query_bert_tokens=padded(ids(model_config.qformer.vocab, batch_size, sentence), run.text.bert_tokens),
        caption_bert_tokens=caption_ids,
        caption_positions=np.tile(positions, (batch_size, 1)),
        stage1_windows=windows,
        window_mask=window_mask,
        labels=padded(ids(model_config.t5.vocab, batch_size, answer), run.text.answer_tokens),
        row_mask=np.ones_like(batch.row_mask),
        example_index=np.arange(batch_size, dtype=np.int32),
    )
