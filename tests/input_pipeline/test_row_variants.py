"""Training rows that are changed: what is drawn, and what reaches the batch."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from calce_jax.input_pipeline.background import background_frames, mix_captions
from calce_jax.input_pipeline.feature_store import (
    FeatureMetadata,
    FrameKeys,
    ShardWriter,
    checksums,
    init_feature_folder,
)
from calce_jax.input_pipeline.input_config import abstract_batch, input_config
from calce_jax.input_pipeline.query_pool import QueryPool
from calce_jax.input_pipeline.row_variants import RowVariants, draw_inverted_task
from calce_jax.input_pipeline.rows import InputError
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.presets.runs import get_preset
from calce_jax.text.inverted import BLANK
from calce_jax.text.prompt import decode_answer
from calce_jax.text.text_row import RowFlag
from tests.input_pipeline.test_input_pipeline import CONFIG, STORED, TOKENIZERS, TRAINING, example, iterate

T5, BERT = TOKENIZERS
NOUNS = ("lighthouse", "bridge", "bread", "violin", "garden", "castle", "river", "market", "rocket", "camera")
VERBS = ("talks", "falls", "burns", "sings", "grows", "stands", "flows", "opens", "lands", "breaks")
# Video n shows its own noun, and says the one after it; so the queries of all others but one are absent.
EXAMPLES = [
    example(
        n,
        query=f"A {noun} {verb}.",
        items=[noun],
        captions=[(0.0, 0.5, f"hello {NOUNS[(n + 1) % 10]}"), (1.0, 2.0, f"the {noun}"), (6.0, 7.0, "goodbye")],
    )
    for n, (noun, verb) in enumerate(zip(NOUNS, VERBS, strict=True))
]
ALL = {"negatives": 0.3, "inverted": 0.3, "mix": 0.5}


def variants(examples=EXAMPLES, **changes):
    return RowVariants(replace(TRAINING, **changes), examples, examples)


def drawn(epochs, make=None, rows=10, **changes):
    make = make or variants(**changes)
    return {(epoch, row): make(epoch, row) for epoch in range(epochs) for row in range(rows)}


def text_of(batch, row, span=-1):
    """Return the text of a span of a row; by default that of the query and the task."""
    start, size = batch.spans[row, span]
    return T5.decode(batch.tokens[row, start : start + size])


def batches(count, config=TRAINING, examples=EXAMPLES):
    iterator = iterate(config, examples)
    return [next(iterator) for _ in range(count)]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, vars(a), vars(b))


@pytest.mark.release
def test_shares_are_those_of_the_config():
    rows = drawn(200, **ALL)
    assert np.mean([row.example.is_absent for row in rows.values()]) == pytest.approx(0.3, abs=0.04)
    assert np.mean([row.inverted is not None for row in rows.values()]) == pytest.approx(0.3, abs=0.04)
    # Of all rows but the negatives.
    assert np.mean([row.background is not None for row in rows.values()]) == pytest.approx(0.35, abs=0.04)
    assert not any(row.example.is_absent and (row.inverted or row.background) for row in rows.values())
    asked_for_words = [bool(row.inverted.shown) for row in rows.values() if row.inverted is not None]
    assert np.mean(asked_for_words) == pytest.approx(0.5, abs=0.08)


def test_draws_depend_on_the_seed_and_the_epoch():
    def kinds(epoch, seed):
        make = variants(**ALL, seed=seed)
        return [(row.example.query, row.inverted) for row in (make(epoch, index) for index in range(10))]

    assert kinds(0, 7) == kinds(0, 7)
    assert kinds(0, 7) != kinds(0, 8)
    assert kinds(0, 7) != kinds(1, 7)


def test_a_kind_of_change_leaves_the_rows_of_the_others_alone():
    alone, with_mix = drawn(20, negatives=0.3, inverted=0.3), drawn(20, **ALL)
    assert {key: row.inverted for key, row in alone.items()} == {key: row.inverted for key, row in with_mix.items()}
    assert [row.example.query for row in alone.values()] == [row.example.query for row in with_mix.values()]
    more = drawn(20, **ALL | {"negatives": 0.5})
    assert all(more[key].example.query == row.example.query for key, row in alone.items() if row.example.is_absent)
    (key,) = [key for key, row in list(with_mix.items())[:20] if row.background is not None][:1]
    crop = np.random.default_rng((TRAINING.seed, *key)).random()
    assert all(np.random.default_rng((TRAINING.seed, *key, stream)).random() != crop for stream in (1, 2))


def test_the_query_of_another_video_never_happens():
    pool = QueryPool(EXAMPLES)
    queries = {}
    for (_, row), variant in drawn(200, negatives=0.5).items():
        if variant.example.is_absent:
            own = EXAMPLES[row]
            foreign = next(n for n, other in enumerate(EXAMPLES) if other.query == variant.example.query)
            assert not pool.may_hold(foreign, pool.content(own.video, own.captions))
            assert foreign not in (row, (row + 1) % 10), "its own noun, and the one that is said"
            assert variant.example.items == EXAMPLES[foreign].items
            assert (variant.example.video, variant.example.keyframes) == (own.video, own.keyframes)
            queries.setdefault(row, set()).add(foreign)
    assert [len(foreign) for foreign in queries.values()] == [8] * 10, "all that are absent are drawn"


def test_a_row_stays_positive_if_every_query_may_happen():
    everywhere = [example(n, query="A red circle.") for n in range(4)]
    for row in drawn(5, variants(everywhere, negatives=0.5, mix=1.0), rows=4).values():
        assert (row.example.query, row.example.is_absent, row.background) == ("A red circle.", False, None)
        assert row.row_flags in (RowFlag.NO_NEGATIVE, RowFlag.NO_BACKGROUND)
    alone = variants([replace(row, video="v") for row in EXAMPLES], negatives=0.5)
    assert all(not row.example.is_absent for row in drawn(5, alone).values()), "no query of the video itself"


def test_the_answer_to_a_negative_is_an_empty_list():
    seen = 0
    for batch in batches(6, replace(TRAINING, negatives=0.5)):
        for row, index in enumerate(batch.example_index):
            answer, own = decode_answer(T5, batch.labels[row]), EXAMPLES[index].query
            assert (answer == "[]") == (own not in text_of(batch, row)), (answer, own)
            assert answer in ("[]", "[[1, 4]]")
            seen += answer == "[]"
    assert 4 < seen < 20


def test_stage_2_gets_the_windows_of_the_video_or_the_whole_video_for_a_negative():
    rows = [replace(row, stage1_windows=np.array([[2.0, 5.0]])) for row in EXAMPLES]
    config = {"negatives": 0.5, "stage": 2}
    found = [row.example.stage1_windows.tolist() for row in drawn(60, variants(rows, **config)).values()]
    negatives = [
        row.example.stage1_windows.tolist()
        for row in drawn(60, variants(rows, **config)).values()
        if row.example.is_absent
    ]
    assert negatives.count([[0.0, 8.0]]) + negatives.count([[2.0, 5.0]]) == len(negatives)
    assert negatives.count([[0.0, 8.0]]) / len(negatives) == pytest.approx(0.5, abs=0.1)
    assert found.count([[2.0, 5.0]]) > len(found) / 2
    for batch in batches(4, replace(TRAINING, **config), rows):
        assert not (batch.row_flags & RowFlag.NO_STAGE1_WINDOWS).any()
    # Where stage 1 found nothing for the video's own query, there is only the whole video.
    none = drawn(5, variants(EXAMPLES, **config)).values()
    assert all(row.example.stage1_windows.tolist() == [[0, 8]] for row in none if row.example.is_absent)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_inverted_row_names_the_windows_and_asks_for_the_query(stage):
    rows = [replace(row, stage1_windows=np.array([[2.0, 5.0]])) for row in EXAMPLES]
    sentences, words = set(), set()
    for batch in batches(8, replace(TRAINING, inverted=0.5, stage=stage), rows):
        for row, index in enumerate(batch.example_index):
            text, answer, query = text_of(batch, row), decode_answer(T5, batch.labels[row]), EXAMPLES[index].query
            if answer == "[[1, 4]]":
                assert query in text
                continue
            assert "Relevant windows: [[1, 4]]" in text
            assert "[[2, 5]]" not in text
            assert "Items" not in text
            # Neither the prompt nor what captions are compared with tells the answer.
            compared = BERT.decode(batch.query_bert_tokens[row], skip_special_tokens=True)
            assert answer.lower() not in text.lower().replace("the query", "")
            assert answer.lower().rstrip(".") not in compared
            (sentences if answer == query else words).add(answer)
            if stage == 2:
                assert batch.stage1_windows[row, 0].tolist() == [1, 4]
                assert batch.window_mask[row].tolist() == [True, False]
    assert len(sentences) > 2
    assert words & set(VERBS)
    assert words & set(NOUNS)


@pytest.mark.release
def test_speech_frames_are_not_chosen_by_a_verb_that_is_asked_for():
    shown = []
    for batch in batches(40, replace(TRAINING, inverted=0.5)):
        for row in np.flatnonzero(batch.example_index == 0):
            shown.append("talks" in text_of(batch, row))
            assert batch.is_speech_query[row] == shown[-1]
    assert 2 < sum(shown) < len(shown)


def test_words_to_ask_for_are_nouns_and_verbs():
    rng = np.random.default_rng(0)
    tasks = [draw_inverted_task(rng, "A red circle moves to the left.") for _ in range(200)]
    assert {task.answer for task in tasks if task.shown} == {"circle", "moves", "left"}
    assert all(
        task.shown.replace(BLANK, task.answer) == "A red circle moves to the left." for task in tasks if task.shown
    )
    assert draw_inverted_task(rng, "?!").shown == ""


def test_text_and_answers_that_are_too_long_are_cut():
    query = "red " * 90 + "circle"
    long = [example(n, query=query) for n in range(4)]
    (batch,) = batches(1, replace(TRAINING, inverted=0.5, seed=2), long)
    inverted = [n for n in range(4) if "Relevant windows: [[1, 4]]" in text_of(batch, n)]
    assert inverted
    for row in inverted:
        assert decode_answer(T5, batch.labels[row]) == " ".join(["red"] * 23)
        assert batch.labels[row, -1] == T5.token_id("</s>")
        assert batch.row_flags[row] & RowFlag.ANSWER_TRUNCATED


TIMES = np.arange(8.0)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([[2, 4]], [0, 1, -1, -1, -1, 2, 0, 1]),
        ([[0, 1], [6, 7]], [-1, -1, 2, 0, 1, 2, -1, -1]),
        ([[0, 7]], None),
        ([[2, 4], [5.2, 5.8]], None),
    ],
)
def test_the_other_video_is_looped_and_windows_stay(windows, expected):
    found = background_frames(TIMES, np.array(windows, np.float64), np.arange(3.0), 3.0)
    assert (None if found is None else found.tolist()) == expected


def test_captions_belong_to_the_video_that_is_shown():
    own = [(0.0, 1.0, "a"), (1.5, 2.5, "b"), (4.0, 5.0, "c")]
    other = [(0.2, 0.8, "x"), (2.5, 3.5, "y"), (9.0, 9.5, "after its end")]
    mixed = mix_captions(own, np.array([[2.0, 4.0]]), 7.0, other, 4.0)
    assert mixed == [(0.2, 0.8, "x"), (1.5, 2.5, "b"), (4.2, 4.8, "x"), (6.5, 7.0, "y")]


def test_frames_outside_the_windows_are_of_a_video_that_does_not_show_the_query():
    """Frame i of video n is 8 (n + i) bright; rows have frames at 0, 2, 4 and 6 s, and their windows end at 4 s."""
    seen = set()
    for mixed, whole in zip(batches(8, replace(TRAINING, mix=1.0)), batches(8), strict=True):
        for row, index in enumerate(mixed.example_index):
            ours, theirs = whole.frames[row, :, 0, 0, 0].astype(int), mixed.frames[row, :, 0, 0, 0].astype(int)
            np.testing.assert_array_equal(theirs[1:3], ours[1:3])
            (other,) = {round((theirs[i] - ours[i]) / 8) for i in (0, 3)}
            assert (index + other) % 10 not in (index, (index - 1) % 10)
            said = [text_of(mixed, row, CONFIG.frames + 1 + n) for n in range(3)]
            assert NOUNS[index] in said[1], "the caption in the window"
            assert NOUNS[(index + other + 1) % 10] in said[0]
            assert decode_answer(T5, mixed.labels[row]) == "[[1, 4]]"
            seen.add(int(other))
        for name in ("times", "frame_mask", "labels", "crop", "example_index"):
            np.testing.assert_array_equal(getattr(mixed, name), getattr(whole, name))
    assert len(seen) > 5


def test_stored_features_of_the_other_video_are_read(tmp_path):
    """The feature of a frame is its video and its index in the file."""
    metadata = FeatureMetadata("", "tiny", "float32", "float32", 32, 4, "float32", 1, 2, 0, "", "", "")
    init_feature_folder(tmp_path, metadata, 0)
    writer = ShardWriter(tmp_path, 0, 0)
    for number, row in enumerate(EXAMPLES):
        keys = FrameKeys(row.video, row.indices[::2].tolist(), checksums(row.keyframes[::2]))
        writer.add(keys, [np.array([number, i], np.float32).tobytes() for i in keys.indices], {})
    writer.close()
    config = replace(TRAINING, mix=1.0, augment=False)
    from_features = batches(4, replace(config, features=str(tmp_path)))
    for found, frames, whole in zip(from_features, batches(4, config), batches(4), strict=True):
        video, index = np.moveaxis(found.features.values[:, :, 0], -1, 0)
        assert video[:, 1:3].tolist() == np.repeat(found.example_index[:, None], 2, 1).tolist()
        assert index.tolist() == [[0, 16, 32, 48]] * 4
        brighter = frames.frames[..., 0, 0, 0].astype(int) - whole.frames[..., 0, 0, 0]
        np.testing.assert_array_equal(video - found.example_index[:, None], np.round(brighter / 8))


def test_an_error_names_the_other_video():
    damaged = [replace(row, keyframes=[b"nothing"] * STORED) if n == 5 else row for n, row in enumerate(EXAMPLES)]
    make = variants(damaged, mix=1.0)
    epoch, row = next(
        key for key, row in drawn(9, make).items() if row.background and row.background.example.qid == "q5"
    )
    config = replace(TRAINING, mix=1.0, batch_size=1, shuffle=False)
    with pytest.raises(InputError, match=r"query q\d of video v\d before frames of video v5: frame \d is not a JPEG"):
        next(iterate(config, damaged, first_batch=10 * epoch + row))


@pytest.mark.parametrize("stage", [1, 2])
def test_shapes_are_those_of_other_rows(stage):
    config = replace(TRAINING, stage=stage, **ALL)
    assert abstract_batch(config) == abstract_batch(replace(TRAINING, stage=stage))
    for batch in batches(3, config):
        for array, promised in zip(jax.tree.leaves(batch), jax.tree.leaves(abstract_batch(config)), strict=True):
            assert (array.shape, array.dtype) == (promised.shape, promised.dtype)


def test_rows_that_are_not_drawn_are_bit_identical():
    """So with shares of 0 whole batches are; this config is the one where the code for changes runs."""
    plain = {}
    for batch in batches(4):
        for row, index in enumerate(batch.example_index.tolist()):
            plain.setdefault(index, []).append(jax.tree.map(lambda array, row=row: array[row], vars(batch)))
    unchanged = 0
    make = variants(**ALL)
    for number, batch in enumerate(batches(4, replace(TRAINING, **ALL))):
        for row, index in enumerate(batch.example_index.tolist()):
            variant = make(number // 2, index)
            if not (variant.example.is_absent or variant.inverted or variant.background or variant.row_flags):
                ours = jax.tree.map(lambda array, row=row: array[row], vars(batch))
                theirs = next(p for p in plain[index] if np.array_equal(p["crop"], ours["crop"]))
                jax.tree.map(np.testing.assert_array_equal, ours, theirs)
                unchanged += 1
    assert unchanged > 2


def test_nothing_is_drawn_where_all_shares_are_0(monkeypatch):
    def refuse(*_):
        raise AssertionError("no row is changed")

    monkeypatch.setattr(RowVariants, "__init__", refuse)
    batches(1)
    with pytest.raises(AssertionError, match="no row is changed"):
        batches(1, replace(TRAINING, mix=0.1))


def test_hosts_and_resuming_change_nothing():
    config = replace(TRAINING, **ALL)
    whole = iterate(config, EXAMPLES)
    parts = [iterate(config, EXAMPLES, process_index=i, process_count=2) for i in range(2)]
    resumed = iterate(config, EXAMPLES)
    for step in range(5):
        if step == 3:
            next(resumed)
            resumed.set_state(whole.get_state())
        batch, halves = next(whole), [next(part) for part in parts]
        assert_same(batch, jax.tree.map(lambda *part: np.concatenate(part), *halves))
        if step >= 3:
            assert_same(batch, next(resumed))


@pytest.mark.release
@pytest.mark.slow
def test_worker_processes_change_nothing():
    config = replace(TRAINING, **ALL)
    alone, workers = iterate(config, EXAMPLES), iterate(replace(config, num_workers=2), EXAMPLES)
    for _ in range(4):
        assert_same(next(alone), next(workers))


def test_only_training_changes_rows():
    config = get_preset("shapes,stage=1")
    config = replace(config, data=replace(config.data, **ALL))
    model = CalceConfig.tiny(64, 64)
    assert input_config(config, "val", model, training=False).changes_rows is False
    training = input_config(config, "train", model, training=True)
    assert {name: getattr(training, name) for name in ALL} == ALL
    assert training.changes_rows


def test_annotated_absent_rows_are_trained_on_and_left_alone():
    absent = [replace(row, windows=np.zeros((0, 2)), is_absent=True) for row in EXAMPLES]
    for row in drawn(5, variants(absent, inverted=0.5, mix=1.0)).values():
        assert (row.inverted, row.background) == (None, None)
    (batch,) = batches(1, TRAINING, absent)
    assert [decode_answer(T5, labels) for labels in batch.labels] == ["[]"] * 4
