"""The text of a row: prompts and labels against the original's, limits, and invalid rows."""

import json
import pickle

import numpy as np
import pytest

from calce_jax.config import packaged_path
from calce_jax.text.caption import Caption
from calce_jax.text.prompt import PromptWriter, decode_answer, find_number_replacements, mentions_speech, stage1_windows
from calce_jax.text.text_row import RowFlag, TextSizes
from calce_jax.text.text_tokenizer import TextTokenizer
from calce_jax.text.tokenizers import load_bert, load_t5

SIZES = TextSizes(frames=4, captions=3, bert_tokens=16, text_tokens=400, answer_tokens=24)
TINY = packaged_path("calce_jax/assets/tiny")
WINDOWS = [[82, 150]]


@pytest.fixture(scope="module")
def tiny():
    return load_t5(TINY / "t5"), load_bert(TINY / "bert")


@pytest.fixture(scope="module")
def real(shared):
    return load_t5(shared / "tokenizers/t5"), load_bert(shared / "tokenizers/bert")


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden/07_prompts.json").read_text())


def pieces(row):
    """Return the token ids of every span."""
    return [row.tokens[start : start + size].tolist() for start, size in row.spans]


def write(tokenizers, *, stage=1, behaviour="default", sizes=SIZES, **changes):
    arguments = {
        "query": "a red circle moves to the left",
        "items": ["red circle"],
        "times": [0, 1, 2, 3],
        "duration": 8,
    }
    return PromptWriter(*tokenizers, sizes, stage=stage, behaviour=behaviour).write(**(arguments | changes))


def test_replaced_numbers_are_the_originals(real, golden):
    extras = golden["extras"]
    assert find_number_replacements(real[0]) == {int(a): b for a, b in extras["replacement_dict"].items()}
    assert find_number_replacements(real[0], 300) == {int(a): b for a, b in extras["replacement_dict_300"].items()}


class SplitsOddNumbers(TextTokenizer):
    """A tokenizer that writes odd numbers as two tokens."""

    def __init__(self):
        pass

    def __call__(self, texts, add_special_tokens):
        end = [1] if add_special_tokens else []
        return {"input_ids": [[7, *end] if int(text) % 2 == 0 else [7, 8, *end] for text in texts]}

    def token_id(self, token):
        return 0


def test_numbers_below_200_are_written_as_one_token():
    replaced = find_number_replacements(SplitsOddNumbers())
    assert list(replaced) == list(range(1, 200, 2))
    assert replaced[199] == 200, "of two equally near the greater"


def test_small_tokenizer_needs_no_replacement(tiny):
    assert find_number_replacements(tiny[0]) == {}


def test_every_second_is_one_token(real, tiny):
    for tokenizers in (real, tiny):
        seconds = np.arange(200)
        sizes = TextSizes(frames=200, captions=1, bert_tokens=16, text_tokens=600, answer_tokens=24)
        row = write(tokenizers, sizes=sizes, times=seconds, duration=199)
        assert (row.spans[:200, 1] == 1).all()


def test_numbers_and_rounding_are_the_originals(real, golden):
    extras = golden["extras"]
    rounding = extras["rounding"]
    times = rounding["in_"]
    sizes = TextSizes(frames=len(times), captions=1, bert_tokens=16, text_tokens=400, answer_tokens=24)
    row = write(real, behaviour="reference", sizes=sizes, times=times, duration=150)
    ids = [[2292] if n == -1 else extras["clean_timestamp_token_ids_0_199"][n] for n in rounding["out"]]
    assert pieces(row)[: len(times)] == ids
    for duration, whole in zip(rounding["durations_in"], rounding["durations_out"], strict=True):
        end = pieces(write(real, behaviour="reference", duration=duration))[4]
        assert end == [2490, *extras["clean_timestamp_token_ids_0_199"][whole], 32099]


def test_reference_answers_are_the_originals(real, golden):
    writer = PromptWriter(*real, SIZES, stage=1, behaviour="reference")
    for windows, text, _ in golden["extras"]["target_replacements"]:
        assert writer.format_answer(json.loads(windows)) == text


def test_default_answers_are_whole_seconds(real):
    writer = PromptWriter(*real, SIZES, stage=1)
    assert writer.format_answer([[16, 1128]]) == "[[16, 1128]]"
    assert writer.format_answer([[24.3, 30.4], [111.8, 128.2]]) == "[[24, 30], [113, 129]]"
    assert writer.format_answer([[24.2, 24.4]]) == "[[24, 25]]"
    assert writer.format_answer([[162, 163]]) == "[[162, 163]]", "replacing 162 by 163 would leave an empty window"


def test_windows_from_a_table_read_as_annotated(real):
    writer = PromptWriter(*real, SIZES, stage=1, behaviour="reference")
    assert writer.format_answer(np.array([[82, 150]], np.float64)) == "[[82, 150]]"
    assert writer.format_answer(np.array([[24.3, 30.0]])) == "[[24.3, 30.0]]"


@pytest.mark.parametrize("name", ["tiny", "real"])
@pytest.mark.parametrize("text", ["[[82, 150]]", "[[0, 2], [4, 199]]", "[[24.3, 30.4]]", "[]"])
def test_answers_survive_the_tokenizer(name, text, request):
    t5, _ = request.getfixturevalue(name)
    ids = t5(text)["input_ids"]
    assert decode_answer(t5, [0, *ids, 0, 0]) == text
    assert decode_answer(t5, np.array([*ids, len(t5) + 3])) == text


@pytest.mark.parametrize("windows", [(), np.zeros((0, 2))])
def test_the_answer_to_an_absent_query_is_an_empty_list(tiny, windows):
    """Where windows are not known, labels are padding."""
    labels = write(tiny, true_windows=windows, is_absent=True).labels
    assert decode_answer(tiny[0], labels) == "[]"
    assert labels[np.flatnonzero(labels)[-1]] == tiny[0].token_id("</s>")
    assert not write(tiny, true_windows=windows).labels.any()


def test_decoding_is_the_originals(real, golden):
    for case in golden["extras"]["decode"]:
        assert decode_answer(real[0], case["ids"]) == case["skip_special"]


@pytest.mark.slow
def test_labels_of_the_original(real, golden):
    for case in golden["cases"]:
        for i, windows in enumerate(case["rows"]):
            sizes = TextSizes(frames=2, captions=1, bert_tokens=32, text_tokens=400, answer_tokens=200)
            row = write(
                real,
                behaviour="reference",
                sizes=sizes,
                times=[0, 1],
                duration=case["duration"][i],
                true_windows=windows["relevant_windows"],
            )
            ids = [t for t, m in zip(case["target_ids"][i], case["target_mask"][i], strict=True) if m]
            assert row.labels[row.labels != 0].tolist() == ids


@pytest.mark.slow
def test_every_annotation_can_be_written(real, shared):
    """A tenth of the annotations, and every one with a window beyond its video."""
    sizes = TextSizes(frames=2, captions=1, bert_tokens=64, text_tokens=400, answer_tokens=144)
    writer = PromptWriter(*real, sizes, stage=1)
    counts = {}
    for name in ("qvh/val", "charades/test"):
        rows = json.loads((shared / f"annotations/calce/{name}.json").read_text())
        row_flags = [
            writer.write(r["query"], r["items"], [0], r["duration"], true_windows=r["relevant_windows"]).row_flags
            for r in rows[::10] + [r for r in rows if any(w[1] > r["duration"] for w in r["relevant_windows"])]
        ]
        counts[name] = sum(RowFlag.TRUE_WINDOW_CLIPPED in flags for flags in row_flags[len(rows[::10]) :])
        assert not any(flags & ~RowFlag.TRUE_WINDOW_CLIPPED for flags in row_flags)
    assert counts == {"qvh/val": 0, "charades/test": 278}


def test_times_of_stage_2_are_rounded_twice_by_the_original_alone(tiny):
    times = [1.4951, 2.5, 3.5, 4.0]  # 2.5 rounds to even; 1.4951 is 1.50 to two decimals, which rounds to 2
    t5 = tiny[0]

    def seconds(**options):
        return [decode_answer(t5, ids) for ids in pieces(write(tiny, times=times, **options))[:4]]

    assert seconds() == ["1", "2", "4", "4"]
    assert seconds(stage=2, stage1_windows=WINDOWS) == ["1", "2", "4", "4"]
    assert seconds(stage=2, behaviour="reference", stage1_windows=WINDOWS) == ["2", "2", "4", "4"]


def test_the_text_of_each_stage(tiny):
    t5 = tiny[0]
    stage1_text = decode_answer(t5, pieces(write(tiny))[-1])
    stage2_text = decode_answer(t5, pieces(write(tiny, stage=2, stage1_windows=[[2.2, 4.6]]))[-1])
    task = "Given the video and the subtitle and the query, find the query relevant windows. Relevant windows:"
    assert stage1_text == f"Query: a red circle moves to the left Items: red circle {task}"
    assert stage2_text == f"Query: a red circle moves to the left ref: [[2, 5]] Items: red circle {task}"


def test_stage_1_windows_are_written_like_frame_times(real):
    windows = [[112, 150]]
    writer = {b: PromptWriter(*real, SIZES, stage=2, behaviour=b) for b in ("default", "reference")}
    assert "ref: [[113, 150]]\n" in writer["default"].format_text("x", [], windows)
    assert "ref: [[112, 150]]\n" in writer["reference"].format_text("x", [], windows)


def test_a_long_query_is_truncated_and_the_task_stays(tiny):
    t5, long_query = tiny[0], "moves " * 5000
    default, reference = (pieces(write(tiny, query=long_query, behaviour=b)) for b in ("default", "reference"))
    assert len(reference[-1]) == 200
    assert 190 < len(default[-1]) <= 200
    assert "find the query relevant windows" in decode_answer(t5, default[-1])
    assert "find the query" not in decode_answer(t5, reference[-1])
    assert default[-1][-1] == reference[-1][-1] == t5.token_id("</s>")
    assert write(tiny, query=long_query).row_flags == RowFlag.QUERY_TRUNCATED


def test_items_and_windows_are_shortened_after_the_query(tiny):
    row = write(tiny, stage=2, items=["red circle"] * 300, stage1_windows=[[2, 4]])
    text = decode_answer(tiny[0], pieces(row)[-1])
    assert text.startswith("Query: ref: [[2, 4]] Items: red circle,red circle,")
    row = write(tiny, stage=2, items=["red circle"] * 300, stage1_windows=[[2, 4]] * 300)
    text = decode_answer(tiny[0], pieces(row)[-1])
    assert text.startswith("Query: ref: [[2, 4], [2, 4], ")
    assert "relevant windows" in text


def test_missing_stage_1_windows():
    assert stage1_windows(None, 8) == ([[0, 8]], RowFlag.NO_STAGE1_WINDOWS)
    assert stage1_windows([], 8) == ([[0, 8]], RowFlag.NO_STAGE1_WINDOWS)
    assert stage1_windows([], 8, "reference") == ([], RowFlag(0))
    assert stage1_windows(np.array([[2.0, 4.0]]), 8) == ([[2, 4]], RowFlag(0))
    with pytest.raises(ValueError, match=r"no stage-1 windows.*merge"):
        stage1_windows(None, 8, "reference")


def test_captions_beyond_the_limits_are_dropped(tiny):
    captions = [Caption(i, i + 1, "hello") for i in range(5)]
    row = write(tiny, captions=captions)
    assert row.row_flags == RowFlag.CAPTIONS_DROPPED
    assert (row.caption_bert_tokens != 0).any(axis=1).all()
    assert [decode_answer(tiny[0], ids) for ids in pieces(row)[5:8]] == ["[0 hello1]", "[1 hello2]", "[2 hello3]"]
    one_caption = write(tiny, captions=captions[:1])
    small_sizes = TextSizes(4, 3, 16, int(one_caption.spans[:, 1].sum()), 24)
    row = write(tiny, captions=captions, sizes=small_sizes)
    assert row.row_flags == RowFlag.CAPTIONS_DROPPED
    assert row.spans[5:8, 1].astype(bool).tolist() == [True, False, False]
    assert pieces(row)[-1] == pieces(one_caption)[-1]


def test_captions_like_the_query_are_dropped_last(tiny):
    captions = [*(Caption(i, i + 1, "hello") for i in range(4)), Caption(4, 5, "the red circle")]
    row = write(tiny, captions=captions)
    assert row.row_flags == RowFlag.CAPTIONS_DROPPED
    assert row.caption_positions.tolist() == [0, 1, 4]
    assert decode_answer(tiny[0], pieces(row)[7]) == "[4 the red circle5]"
    all_fit = write(tiny, captions=captions[2:])
    assert (all_fit.row_flags, all_fit.caption_positions.tolist()) == (RowFlag(0), [0, 1, 2])
    one_caption = write(tiny, captions=captions[4:])
    row = write(tiny, captions=captions, sizes=TextSizes(4, 5, 16, int(one_caption.spans[:, 1].sum()), 24))
    assert row.row_flags == RowFlag.CAPTIONS_DROPPED
    assert row.caption_positions.tolist() == [4, -1, -1, -1, -1]
    assert pieces(row)[5] == pieces(one_caption)[5]


def test_long_captions_and_queries_keep_their_bert_end(tiny):
    row = write(tiny, query="red " * 30, captions=[Caption(0, 1, "red " * 30)])
    assert row.row_flags == RowFlag.QUERY_TRUNCATED | RowFlag.CAPTION_TRUNCATED
    assert row.query_bert_tokens[-1] == row.caption_bert_tokens[0, -1] == tiny[1].token_id("[SEP]")
    assert row.row_flags.describe() == ["query truncated", "caption truncated"]


def test_a_long_answer_loses_whole_windows(tiny):
    t5, windows = tiny[0], [[i, i + 1] for i in range(0, 8, 2)]
    row = write(tiny, true_windows=windows)
    assert row.row_flags == RowFlag.ANSWER_TRUNCATED
    assert decode_answer(t5, row.labels) == "[[0, 1], [2, 3]]"
    row = write(tiny, true_windows=windows, behaviour="reference")
    assert row.row_flags == RowFlag.ANSWER_TRUNCATED
    assert row.labels[-1] == t5.token_id("</s>")


def test_no_answer_leaves_no_label(tiny):
    assert not write(tiny).labels.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": range(5)}, r"5 frames, but rows hold 4; .*--frames=4"),
        ({"true_windows": [[9, 12]]}, r"window \[9, 12\]: lies outside the video of 8 s; correct"),
        ({"true_windows": [[4, 2]]}, r"window \[4, 2\]: must be \[start, end\]"),
        ({"true_windows": [[-1, 2]]}, r"window \[-1, 2\]: must be"),
        ({"sizes": TextSizes(4, 3, 16, 20, 24)}, r"text_tokens: must be at least \d+ .*, got 20; raise it"),
        (
            {"sizes": TextSizes(4, 3, 16, 400, 24, max_text=10)},
            r"max_text: must be at least \d+ to hold the task, got 10",
        ),
        ({"stage": 2}, r"stage1_windows: missing for a prompt of stage 2"),
        (
            {"sizes": TextSizes(4, 3, 16, 400, 4), "true_windows": [[2, 4]]},
            r"answer_tokens: 4 tokens do not hold one window",
        ),
    ],
)
def test_invalid_rows_name_the_remedy(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tiny, **changes)


def test_a_window_that_reaches_beyond_the_video_is_shortened(tiny):
    row = write(tiny, true_windows=[[6.6, 8.4]])
    assert row.row_flags == RowFlag.TRUE_WINDOW_CLIPPED
    assert decode_answer(tiny[0], row.labels) == "[[7, 8]]"


@pytest.mark.parametrize(
    ("query", "default", "reference"),
    [
        ("Two men talk.", True, True),
        ("Talking heads on a sofa.", True, False),
        ("A woman is describing her trip.", True, False),
        ("A student hands in an essay.", False, True),
        ("He said hello.", True, False),
        ("A red circle moves.", False, False),
    ],
)
def test_queries_that_mention_speech(query, default, reference):
    assert mentions_speech(query) is default
    assert mentions_speech(query, "reference") is reference


def test_speech_queries_of_the_original(shared):
    recorded = json.loads((shared / "golden/05_keyframes_stage1.json").read_text())["is_talk_relative"]
    assert [mentions_speech(r["query"], "reference") for r in recorded] == [r["talk"] for r in recorded]


def test_writers_can_be_pickled(tiny):
    writer = PromptWriter(*tiny, SIZES, stage=1)
    first, second = (w.write("a red circle", [], [0, 1], 8) for w in (writer, pickle.loads(pickle.dumps(writer))))
    assert np.array_equal(first.tokens, second.tokens)
