"""What a run trains on, in a few numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.table_fingerprint import has_items, table_changes, table_fingerprint

QUERIES = [
    Query(
        qid=n,
        video=f"v{n // 2}",
        video_row=n // 2,
        query=f"A cat {n}.",
        items=["cat"],
        duration=9.0,
        windows=np.array([[0.0, 2.0]]),
        stage1_windows=np.array([[1.0, 3.0]]),
        kind=None,
    )
    for n in range(4)
]


def test_queries_without_the_newer_fields_have_the_hash_of_earlier_versions():
    assert table_fingerprint(QUERIES, 1)["sha256"].startswith("5b8a5d95d314873c")
    assert table_fingerprint(QUERIES, 2)["sha256"].startswith("312e6b30fdc2fc1e")


def test_it_is_json_and_equal_for_equal_queries():
    before = table_fingerprint(QUERIES, 1)
    assert json.loads(json.dumps(before)) == before == table_fingerprint([replace(q) for q in QUERIES], 1)
    assert (before["queries"], before["videos"]) == (4, 2)
    assert table_changes(before, before) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"query": "A dog."},
        {"qid": "0"},
        {"items": []},
        {"duration": 8.0},
        {"windows": np.array([[0.0, 3.0]])},
        {"video": "v1"},
    ],
    ids=str,
)
def test_any_change_is_noticed(changes):
    before, now = table_fingerprint(QUERIES, 1), table_fingerprint([replace(QUERIES[0], **changes), *QUERIES[1:]], 1)
    assert table_changes(before, now) == "other sentences, items, durations, windows, or another order"


def test_an_absent_query_and_used_facts_are_noticed():
    unknown = [replace(query, windows=np.zeros((0, 2))) for query in QUERIES]
    absent = [replace(query, is_absent=True, facts=("cat",)) for query in unknown]
    before = table_fingerprint(unknown, 1)
    assert table_changes(before, table_fingerprint(absent, 1))
    other = [replace(query, facts=("dog",)) for query in absent]
    assert not table_changes(table_fingerprint(absent, 1), table_fingerprint(other, 1))
    assert table_changes(*(table_fingerprint(rows, 1, with_facts=True) for rows in (absent, other)))


def test_fewer_queries_and_another_order_are_named():
    before = table_fingerprint(QUERIES, 1)
    assert table_changes(before, table_fingerprint(QUERIES[:2], 1)) == "4 queries then, 2 now, 2 videos then, 1 now"
    assert "another order" in table_changes(before, table_fingerprint(QUERIES[::-1], 1))


def test_a_split_without_any_item_is_known():
    bare = [replace(query, items=[]) for query in QUERIES]
    assert has_items(table_fingerprint([*bare, *QUERIES[:1]], 1))
    assert not has_items(table_fingerprint(bare, 1))
    # Earlier versions did not count them: runs of theirs, and converted ones, were trained with items.
    assert has_items({"queries": 4, "videos": 2, "sha256": "ab"})
    assert has_items({})


def test_windows_of_stage_1_count_in_stage_2_alone():
    other = [replace(QUERIES[0], stage1_windows=None), *QUERIES[1:]]
    assert table_fingerprint(QUERIES, 1) == table_fingerprint(other, 1)
    assert table_fingerprint(QUERIES, 2) != table_fingerprint(other, 2)
