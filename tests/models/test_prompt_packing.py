"""Prompt layouts and caption selection, position by position against the original's."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.prompt_packing import (
    build_prompt_layout,
    caption_similarity,
    count_prompt_tokens,
    select_captions,
)
from calce_jax.models.selection import CaptionSelection
from calce_jax.text.caption import Caption
from calce_jax.text.prompt import NO_CAPTION, PromptWriter
from calce_jax.text.text_row import TextSizes
from calce_jax.text.tokenizers import load_bert, load_t5

FULL, COMPRESSED = 32, 8
FRAMES, CAPTIONS, LENGTH = 150, 12, 3072


@pytest.fixture(scope="module")
def tokenizers(shared):
    return load_t5(shared / "tokenizers/t5"), load_bert(shared / "tokenizers/bert")


@pytest.fixture(scope="module")
def compiled():
    """Return the jitted layout and length functions, one compilation for all recorded cases."""
    options = {"full_tokens": FULL, "compressed_tokens": COMPRESSED}
    return jax.jit(partial(build_prompt_layout, length=LENGTH, **options)), jax.jit(
        partial(count_prompt_tokens, **options)
    )


def plan_of(key, other, slots=FRAMES):
    """Return frame_index, slot_mask and is_keyframe of a plan with these key frames and compressed frames."""
    frames = sorted([*key, *other])
    index = np.zeros(slots, np.int32)
    index[: len(frames)] = frames
    slot_mask = np.arange(slots) < len(frames)
    return index, slot_mask, slot_mask & np.isin(index, list(key))


def sample(case, i, tokenizers):
    """Return a recorded sample as arrays: tokens, spans, plan, caption selection."""
    row = case["rows"][i]
    captions = [Caption(c["start"], c["end"], c["text"]) for c in case["subtitles_in"][i]]
    chosen = [c for c in case["subtitles_selected"][i] if c["text"] != NO_CAPTION]
    order = [captions.index(Caption(c["start"], c["end"], c["text"])) for c in chosen]
    sizes = TextSizes(FRAMES, CAPTIONS, bert_tokens=64, text_tokens=700, answer_tokens=200)
    writer = PromptWriter(*tokenizers, sizes, stage=case["stage"], behaviour="reference")
    windows = json.loads(case["stage1_result"][i]) if case["stage"] == 2 else None
    text = writer.write(
        row["query"],
        row["items"],
        case["timestamps"][i],
        case["duration"][i],
        captions,
        true_windows=row["relevant_windows"],
        stage1_windows=windows,
    )
    assert not text.row_flags
    choice = np.array([*order, *[0] * (5 - len(order))], np.int32), np.arange(5) < len(order)
    return text.tokens, text.spans, plan_of(case["key_frame_idx"][i], case["non_key_frame_idx"][i]), choice


def batch_of(samples):
    tokens, spans, plans, choices = zip(*samples, strict=True)
    index, kept, key = map(np.stack, zip(*plans, strict=True))
    order, used = map(np.stack, zip(*choices, strict=True))
    n = len(samples)
    plan = device(FramePlan, index, kept, key, np.zeros((n, FRAMES), np.int32), np.zeros(n, bool))
    choice = device(CaptionSelection, order, used, np.zeros((n, CAPTIONS), np.float32))
    return plan, jnp.asarray(np.stack(tokens)), jnp.asarray(np.stack(spans)), choice


def device(kind, *arrays):
    return kind(*map(jnp.asarray, arrays))


def host(value):
    """Return a struct's arrays as numpy, under the same names."""
    return SimpleNamespace(**{name: np.asarray(array) for name, array in vars(value).items()})


@pytest.mark.release
def test_every_position_is_the_originals(shared, tokenizers, compiled):
    """72 batches of one or three samples, without the padding that the original has in the middle."""
    cases = json.loads((shared / "golden/07_prompts.json").read_text())["cases"]
    packs, measures = compiled
    num_samples = 0
    for case in cases:
        plan, tokens, spans, choice = batch_of([sample(case, i, tokenizers) for i in range(len(case["rows"]))])
        # Always three samples, so that each function compiles once.
        plan, tokens, spans, choice = jax.tree.map(
            lambda a: jnp.concatenate([a] * 3)[:3], (plan, tokens, spans, choice)
        )
        packed = host(packs(plan, tokens, spans, choice))
        needed = np.asarray(measures(plan, spans, choice))
        for i in range(len(case["rows"])):
            real = np.array(case["attention_mask"][i]) == 1
            kind = np.array(case["kind"][i])[real]
            n = len(kind)
            assert set(kind) <= {1, 2}
            assert needed[i] == n
            assert packed.mask[i].tolist() == [True] * n + [False] * (LENGTH - n)
            text = packed.is_text[i, :n]
            assert np.array_equal(text, kind == 1)
            assert np.array_equal(packed.token_id[i, :n][text], np.array(case["token_id"][i])[real][text])
            slot = packed.slot[i, :n][~text]
            frame = np.asarray(plan.frame_index)[i, slot]
            assert np.array_equal(frame, np.array(case["frame_idx"][i])[real][~text])
            assert np.array_equal(packed.is_keyframe[i, :n][~text], np.isin(frame, case["key_frame_idx"][i]))
            # Within a frame the query tokens come in order, each once.
            size = np.where(packed.is_keyframe[i, :n][~text], FULL, COMPRESSED)
            expected = [q for s in dict.fromkeys(slot) for q in range(size[slot == s][0])]
            assert packed.query_token[i, :n][~text].tolist() == expected
            num_samples += 1
    assert num_samples == 120


def random_batch(key, n=4, slots=6, captions=3, tokens=40):
    """Return random plans and spans; sample 0 has no frames, sample 1 no captions."""
    rng = np.random.default_rng(key)
    slot_mask = np.sort(rng.random((n, slots)) < 0.7, axis=1)[:, ::-1].copy()
    slot_mask[0] = False
    used = np.sort(rng.random((n, 2)) < 0.7, axis=1)[:, ::-1].copy()
    used[1] = False
    plan = device(
        FramePlan,
        np.sort(rng.integers(0, slots, (n, slots)).astype(np.int32), axis=1),
        slot_mask,
        slot_mask & (rng.random((n, slots)) < 0.5),
        np.zeros((n, slots), np.int32),
        np.zeros(n, bool),
    )
    spans = np.stack(
        [rng.integers(0, tokens - 3, (n, slots + captions + 4)), rng.integers(0, 4, (n, slots + captions + 4))], -1
    ).astype(np.int32)
    order = np.stack([rng.permutation(captions)[:2] for _ in range(n)]).astype(np.int32)
    choice = device(CaptionSelection, order, used, np.zeros((n, captions), np.float32))
    return plan, jnp.asarray(rng.integers(1, 99, (n, tokens)).astype(np.int32)), jnp.asarray(spans), choice


def prompt_by_loops(plan, tokens, spans, choice, i):
    """Return one prompt by plain loops: token ids and (slot, query token, is_keyframe); 5 or 2 tokens a frame."""
    plan, choice, tokens, spans = host(plan), host(choice), np.asarray(tokens), np.asarray(spans)
    frames = spans.shape[1] - choice.similarity.shape[1] - 4

    def span(number):
        start, size = spans[i, number]
        return tokens[i, start : start + size].tolist()

    out = []
    for slot in range(plan.frame_index.shape[1]):
        if plan.slot_mask[i, slot]:
            key = bool(plan.is_keyframe[i, slot])
            out += [(slot, q, key) for q in range(5 if key else 2)]
            out += span(plan.frame_index[i, slot])
    out += span(frames)
    chosen = [c for c, used in zip(choice.caption_index[i], choice.is_used[i], strict=True) if used]
    for caption in chosen:
        out += span(frames + 1 + caption)
    return [*out, *(span(-3) if not chosen else []), *span(-2), *span(-1)]


def test_packing_equals_plain_loops():
    packs = jax.jit(partial(build_prompt_layout, length=28, full_tokens=5, compressed_tokens=2))
    measures = jax.jit(partial(count_prompt_tokens, full_tokens=5, compressed_tokens=2))
    cut = 0
    for seed in range(20):
        batch = random_batch(seed)
        prompts = [prompt_by_loops(*batch, i) for i in range(4)]
        packed = host(packs(*batch))
        needed = np.asarray(measures(batch[0], batch[2], batch[3]))
        for i in range(4):
            expected = prompts[i]
            assert needed[i] == len(expected)
            cut += len(expected) > 28
            got = [
                packed.token_id[i, at]
                if packed.is_text[i, at]
                else (packed.slot[i, at], packed.query_token[i, at], packed.is_keyframe[i, at])
                for at in range(28)
                if packed.mask[i, at]
            ]
            assert got == expected[:28]
    assert cut, "none of the random prompts was longer than the layout"


@pytest.mark.slow
def test_layouts_do_not_depend_on_the_batch():
    packs = jax.jit(partial(build_prompt_layout, length=40, full_tokens=5, compressed_tokens=2))
    batch = random_batch(3)
    batched = host(packs(*batch))
    alone = [host(packs(*jax.tree.map(lambda a, i=i: a[i : i + 1], batch))) for i in range(4)]
    for name, array in vars(batched).items():
        np.testing.assert_array_equal(array, np.concatenate([vars(layout)[name] for layout in alone]))


def test_captions_are_used_in_the_order_of_similarity():
    # Cosines with the query: 0.6, 1, 0.95, 1, and a masked caption equal to the query.
    captions = jnp.array([[[0.6, 0.8], [2.0, 0.0], [0.95, 0.3122499], [5.0, 0.0], [1.0, 0.0]]])
    valid = jnp.array([[True, True, True, True, False]])
    query = jnp.array([[3.0, 0.0]])
    similarity = caption_similarity(query, captions)
    choice = select_captions(similarity, valid, min_similarity=0.9, max_captions=4)
    assert choice.caption_index[0, :3].tolist() == [1, 3, 2]
    assert choice.is_used[0].tolist() == [True, True, True, False]
    np.testing.assert_allclose(choice.similarity[0, :4], [0.6, 1.0, 0.95, 1.0], rtol=1e-6)
    assert select_captions(similarity, valid, min_similarity=0.9, max_captions=2).caption_index.tolist() == [[1, 3]]


@pytest.mark.slow
def test_the_captions_the_original_chooses(shared):
    """Each recorded cosine becomes a unit vector at that angle to the query."""
    cases = json.loads((shared / "golden/08_subtitles.json").read_text())["cls_filter"]
    cases = [case for case in cases if case["sims"] is not None]  # the others have no captions
    assert len(cases) == 27
    for case in cases:
        cosine = np.array(case["sims"], np.float64)
        captions = jnp.asarray(np.stack([cosine, np.sqrt(1 - cosine**2)], -1)[None], jnp.float32)
        choice = select_captions(
            caption_similarity(jnp.array([[1.0, 0.0]]), captions),
            jnp.ones((1, len(cosine)), bool),
            min_similarity=case["threshold"],
            max_captions=case["topk"],
        )
        chosen = [case["subtitles"][c] for c in choice.caption_index[0, choice.is_used[0]]]
        assert (chosen or [{"start": -1, "end": -1, "text": NO_CAPTION}]) == case["selected"]


def test_a_caption_must_exceed_the_threshold():
    query = jnp.array([[1.0, 0.0]])
    similarity = caption_similarity(query, query[:, None])
    choice = select_captions(similarity, jnp.ones((1, 1), bool), min_similarity=1.0, max_captions=5)
    assert not choice.is_used.any()
    assert choice.caption_index.shape == (1, 1), "no more places than captions"


def test_a_caption_without_features_resembles_nothing():
    similarity = caption_similarity(jnp.ones((1, 2)), jnp.zeros((1, 2, 2)))
    choice = select_captions(similarity, jnp.ones((1, 2), bool), min_similarity=0.0, max_captions=5)
    assert np.isfinite(choice.similarity).all()
    assert not choice.is_used.any()
