"""Whether a query may happen in a video of the split."""

from dataclasses import replace

import numpy as np
import pytest

from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.query_pool import MIN_COMMON, QueryPool
from calce_jax.moments.annotations import read_annotations
from data.shapes.scene import make_scene
from data.shapes.write import annotate


def query(number, sentence, video=None, **fields):
    return Query(number, video or f"v{number}", number, sentence, [], 8.0, np.array([[1.0, 4.0]]), None, None, **fields)


def absent(pool, video, captions=()):
    """Return the rows of the queries that do not happen in a video."""
    content = pool.content(video, captions)
    return [row for row in range(len(pool.queries)) if not pool.may_hold(row, content)]


def test_a_shared_word_with_any_query_or_caption_of_the_video_may_hold():
    sentences = ["A dog runs.", "Two dogs sleep.", "A cat jumps.", "A man is cooking.", "We can see it."]
    pool = QueryPool([query(0, "A horse jumped over a fence."), *map(query, range(1, 6), sentences)])
    assert absent(pool, "v0") == [1, 2, 4]
    assert absent(pool, "v0", [(0.0, 1.0, "the cook is here")]) == [1, 2]
    assert absent(pool, "v5") == [0, 1, 2, 3, 4], "but the query without content words may happen anywhere"


def test_facts_decide_where_both_have_them():
    facts = {"facts": ("red circle", "red circle left")}
    pool = QueryPool(
        [
            query(0, "A red circle moves to the left.", fact="red circle left", **facts),
            query(1, "A red circle moves to the right.", fact="red circle right", facts=("red circle right",)),
            query(2, "A red circle travels to the left.", fact="red circle left"),
            query(3, "A blue square stays."),
        ]
    )
    assert absent(pool, "v0", [(0.0, 1.0, "a blue square")]) == [1], "without a fact of the query its words decide"
    assert absent(pool, "v0") == [1, 3]
    assert absent(pool, "v3") == [0, 1, 2], "without facts of the video too"


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize(
    ("path", "common", "share"),
    [
        ("qvhighlights/highlight_train_release.jsonl", "woman", 0.88),
        ("calce/charades/train.json", "person", 0.80),
    ],
)
def test_most_queries_of_published_sets_are_absent_elsewhere(shared, path, common, share):
    """The shares of docs/training_rows.md: of single draws, without captions."""
    rows = read_annotations(shared / "annotations" / path)
    pool = QueryPool(replace(query(n, row.query), video=row.video) for n, row in enumerate(rows))
    assert not any(common in words for words in pool._words)
    draws = np.random.default_rng(0).integers(len(rows), size=(5000, 2)).tolist()
    absent = [
        not pool.may_hold(row, pool.content(rows[other].video))
        for row, other in draws
        if rows[row].video != rows[other].video
    ]
    assert np.mean(absent) == pytest.approx(share, abs=0.015)


def test_most_queries_of_the_shapes_world_are_absent_elsewhere():
    rows = [row for n in range(100) for row in annotate(make_scene(n), f"v{n}")]
    pool = QueryPool(
        replace(query(n, row.query), video=row.video, fact=row.fact, facts=tuple(row.facts))
        for n, row in enumerate(rows)
    )
    draws = np.random.default_rng(0).integers(len(rows), size=(2000, 2)).tolist()
    absent = [
        not pool.may_hold(row, pool.content(rows[other].video))
        for row, other in draws
        if rows[row].video != rows[other].video
    ]
    assert np.mean(absent) == pytest.approx(0.87, abs=0.02)


@pytest.mark.parametrize(("count", "is_common"), [(MIN_COMMON, False), (MIN_COMMON + 5, True)])
def test_a_word_of_most_queries_does_not_count(count, is_common):
    nouns = [chr(97 + n // 26) + chr(97 + n % 26) + "x" for n in range(count)]
    pool = QueryPool([query(n, f"A person holds the {noun}.") for n, noun in enumerate(nouns)])
    assert absent(pool, "v0") == (list(range(1, count)) if is_common else [])
