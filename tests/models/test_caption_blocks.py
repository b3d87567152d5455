"""Captions beyond one block: all are compared with the query, block after block, and few of them as without blocks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.config import packaged_path
from calce_jax.distributed.sharding import make_mesh, put_batch
from calce_jax.models.prompt_packing import map_caption_blocks
from calce_jax.models.selection import SelectionConfig
from calce_jax.text.caption import Caption
from calce_jax.text.prompt import PromptWriter, decode_answer
from calce_jax.text.text_row import RowFlag, TextSizes
from calce_jax.text.tokenizers import load_bert, load_t5
from tests.helpers.tiny_model import SIZES, make_model

BLOCK, BLOCKS, FRAMES, BERT_TOKENS = 64, 4, 2, 12
QUERY = "the red circle moves to the left"
T5, BERT = (
    load(packaged_path(f"calce_jax/assets/tiny/{name}")) for load, name in ((load_t5, "t5"), (load_bert, "bert"))
)
# Captions of their own words, none of which is in the query.
WORDS = ["we", "found", "a", "violin", "look", "lighthouse", "here", "is", "my", "old", "friend", "come", "and", "see"]


def captions_of(count, last=""):
    texts = [" ".join(WORDS[(n * step) % len(WORDS)] for step in (1, 3, 7)) for n in range(count)]
    texts[-1] = last or texts[-1]
    return [Caption(n / 2, n / 2 + 0.4, text) for n, text in enumerate(texts)]


def write(captions, num_blocks):
    sizes = TextSizes(FRAMES, BLOCK * num_blocks, BERT_TOKENS, 1600 * num_blocks, answer_tokens=8)
    return PromptWriter(T5, BERT, sizes, stage=1).write(QUERY, [], [0.0, 50.0], 100.0, captions)


def batch_of(*rows):
    """Return a batch of text rows, of which only captions and queries count."""
    zeros = Batch.zeros(
        len(rows),
        frames=FRAMES,
        image_size=0,
        captions=len(rows[0].caption_bert_tokens),
        bert_tokens=BERT_TOKENS,
        text_tokens=len(rows[0].tokens),
        windows=1,
        answer_tokens=8,
    )
    names = ("tokens", "spans", "query_bert_tokens", "caption_bert_tokens", "caption_positions")
    return replace(zeros, **{name: np.stack([getattr(row, name) for row in rows]) for name in names})


@pytest.fixture(scope="module")
def select():
    """Return the compiled selection of captions by a model of random weights."""
    sizes = replace(SIZES, qformer=replace(SIZES.qformer, vocab=len(BERT)))
    graph, *states = make_model(sizes)
    selection = SelectionConfig(stage=1, caption_block=BLOCK)

    @jax.jit
    def run(states, batch):
        return nnx.merge(graph, *states).select_captions(batch, selection)

    def select(*rows, mesh="single"):
        mesh = make_mesh(mesh)
        with jax.set_mesh(mesh):
            return jax.device_get(run(states, put_batch(batch_of(*rows), mesh)))

    return select


@pytest.mark.slow
@pytest.mark.parametrize("count", [65, 200])
def test_the_last_of_many_captions_is_used_first_if_it_is_the_most_alike(select, count):
    text = write(captions_of(count, last=QUERY), BLOCKS)
    assert text.row_flags == RowFlag(0)
    assert text.caption_positions.tolist() == [*range(count), *[-1] * (BLOCK * BLOCKS - count)]
    choice = select(text, text)
    assert choice.caption_index[:, 0].tolist() == [count - 1] * 2
    assert choice.is_used[:, 0].all()
    np.testing.assert_allclose(choice.similarity[:, count - 1], 1.0, rtol=1e-6)
    start, length = text.spans[FRAMES + 1 + choice.caption_index[0, 0]]
    assert QUERY in decode_answer(T5, text.tokens[start : start + length])


def test_up_to_one_block_everything_is_bit_for_bit_as_without_blocks(select):
    few, full = captions_of(10), captions_of(BLOCK)
    alone, blocks = ([write(captions, number) for captions in (few, full)] for number in (1, BLOCKS))
    for one, several in zip(alone, blocks, strict=True):
        used = np.count_nonzero(one.tokens)
        assert np.array_equal(one.tokens[:used], several.tokens[:used])
        assert np.array_equal(one.spans[one.spans[:, 1] > 0], several.spans[several.spans[:, 1] > 0])
        assert np.array_equal(one.caption_bert_tokens, several.caption_bert_tokens[:BLOCK])
        assert one.row_flags == several.row_flags == RowFlag(0)
    expected, choice = select(*alone), select(*blocks)
    np.testing.assert_array_equal(choice.similarity[:, :BLOCK], expected.similarity)
    np.testing.assert_array_equal(choice.caption_index, expected.caption_index)
    np.testing.assert_array_equal(choice.is_used, expected.is_used)
    assert expected.similarity[0, 10:].all(), "absent captions of a block that is used are computed"
    assert not choice.similarity[:, BLOCK:].any(), "blocks without any caption are not"


def test_devices_agree_on_the_blocks_that_they_compute(select):
    """One of four devices has the only row of several blocks."""
    rows = [write(captions_of(count, last=QUERY), BLOCKS) for count in (3, 1, 130, 2)]
    alone, together = select(*rows), select(*rows, mesh="a100x4")
    assert together.caption_index[:, 0].tolist() == [2, 0, 129, 1]
    np.testing.assert_allclose(together.similarity, alone.similarity, rtol=1e-6, atol=1e-6)


def test_more_captions_than_all_blocks_hold_are_dropped_by_their_words():
    text = write(captions_of(200, last=QUERY), 1)
    assert text.row_flags == RowFlag.CAPTIONS_DROPPED
    assert text.caption_positions.tolist() == [*range(BLOCK - 1), 199]
    assert np.array_equal(text.caption_bert_tokens[-1], text.query_bert_tokens)


def test_blocks_share_no_random_numbers_and_the_first_has_those_it_has_alone():
    def similarity(tokens, key):
        return tokens.sum(axis=2).astype(jnp.float32) + jax.random.uniform(key, tokens.shape[:2])

    tokens, key = jnp.ones((2, 12, 3), jnp.int32).at[1, 8:].set(0), jax.random.key(5)
    alone = map_caption_blocks(similarity, tokens[:, :4], 4, key)
    blocks = map_caption_blocks(similarity, tokens, 4, key)
    np.testing.assert_array_equal(blocks[:, :4], alone)
    assert len(np.unique(np.asarray(blocks))) == blocks.size
    np.testing.assert_array_equal(blocks.astype(jnp.int32)[1], [3] * 8 + [0] * 4)
    empty = map_caption_blocks(similarity, tokens.at[:, 4:8].set(0), 4, key)
    np.testing.assert_array_equal(empty[:, 4:8], 0)
    np.testing.assert_array_equal(empty[:, 8:], blocks[:, 8:])


def test_a_number_of_captions_that_is_no_multiple_of_the_block_is_refused():
    with pytest.raises(TypeError, match="reshape"):
        map_caption_blocks(lambda tokens, _: tokens[..., 0].astype(jnp.float32), jnp.ones((1, 6, 2), jnp.int32), 4)
