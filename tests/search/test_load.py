"""Many searches in one process keep its memory and its open files."""

import gc
import os
from pathlib import Path

import pytest

from calce_jax.search.searcher import Searcher
from calce_jax.storage.disk_cache import DiskCache
from tests.helpers.search_stages import MAX_SEGMENT_SECONDS, make_stages
from tests.helpers.video_files import write_clip

SEARCHES, WARM_UP = 200, 40


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.release
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="there is no /proc")
def test_two_hundred_searches_keep_memory_and_descriptors(tmp_path):
    """Every fourth video is new; the others come from the cache. What stays after 40 searches may stay."""
    videos = [write_clip(tmp_path / f"{n}.mp4", frames=20, rate=5) for n in range(SEARCHES // 4)]
    searcher = Searcher(make_stages(), DiskCache(tmp_path / "cache", max_bytes=2_000_000), MAX_SEGMENT_SECONDS)
    for number in range(SEARCHES):
        searcher.search(videos[number // 4], [f"a red circle moves to the left {number}"])
        if number == WARM_UP:
            gc.collect()
            memory, descriptors = resident_megabytes(), len(list(Path("/proc/self/fd").iterdir()))
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    # Fragments of the heap; one search's features are 0.1 MB, its frames 0.1 MB.
    assert resident_megabytes() < memory + 25
