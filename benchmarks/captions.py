"""How many captions a file of subtitles has for a model, and which a prompt gets: `python -m benchmarks.captions`.

Prints, for each file of --srt, the captions of its segments of 150 s (QVHighlights) and 40 s (the tiny model), which a
search makes of a long video, and of the file as one video, as training reads it. Then the tiny model chooses among the
captions of the whole file, for queries that quote a caption drawn at random ("somebody says ..."): by the similarity of
the first 64 captions alone, as versions before blocks did, and of up to 8 blocks of 64.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.inference.trained_run import load_base_model
from calce_jax.models.calce import SelectionConfig
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.segments import Segment, segment_captions, split_into_segments
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions, read_srt
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import RowFlag, TextRow, TextSizes

SEGMENT_SECONDS = (150.0, 40.0)
BLOCK, BLOCKS = 64, 8
FRAMES, QUERIES_AT_ONCE = 2, 4


def main() -> None:
    """Count the captions of every file, then choose among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--srt", type=Path, nargs="+", required=True, help="files of subtitles, in English")
    parser.add_argument("--queries", type=int, default=100, help="queries about each file")
    args = parser.parse_args()
    choose = CaptionChooser()
    for path in args.srt:
        captions = read_srt(path)
        duration = float(captions[-1].end)
        print(f"{path.name}: {len(captions)} captions in {duration / 60:.0f} minutes")
        for seconds in SEGMENT_SECONDS:
            print_counts(f"segments of {seconds:g} s", captions, split_into_segments(duration, seconds))
        print_counts("one video", captions, [Segment(0.0, duration)])
        print_choices(choose, clean_captions(captions), duration, args.queries)


def print_counts(name: str, captions: Sequence[Caption], segments: Sequence[Segment]) -> None:
    """Print how many captions the segments have after cleaning, and how many of them exceed 64 and 512."""
    counts = np.array([len(clean_captions(segment_captions(captions, segment))) for segment in segments])
    beyond = [int((counts > limit).sum()) for limit in (BLOCK, BLOCK * BLOCKS)]
    dropped = [100 * np.maximum(counts - limit, 0).sum() / counts.sum() for limit in (BLOCK, BLOCK * BLOCKS)]
    print(
        f"  {name}: {len(counts)}, captions {np.median(counts):.0f} (median), {counts.max()} (maximum); "
        f"beyond 64: {beyond[0]} segments, {dropped[0]:.1f} % of captions; "
        f"beyond 512: {beyond[1]} segments, {dropped[1]:.1f} %"
    )


class CaptionChooser:
    """Chooses captions with the tiny model's text branch, in rows of one block or of `BLOCKS`."""

    def __init__(self) -> None:
        trained = load_base_model(tiny_config(1))
        self.tokenizers, self._states = trained.tokenizers, (trained.trainable, trained.frozen)
        self._bert_tokens, self._text_tokens = trained.config.text.bert_tokens, trained.config.text.text_tokens

        def choose(states: tuple[nnx.State, nnx.State], batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            model = nnx.merge(trained.graph, *states)
            choice = model.select_captions(batch, SelectionConfig(stage=1, caption_block=BLOCK))
            return choice.caption_index, choice.is_used, choice.similarity

        self._choose = jax.jit(choose)

    def write(self, query: str, captions: Sequence[Caption], duration: float, blocks: int) -> TextRow:
        """Return the text row of a query."""
        text_tokens = BLOCK * blocks * self._text_tokens  # never what limits the captions here
        sizes = TextSizes(FRAMES, BLOCK * blocks, self._bert_tokens, text_tokens, answer_tokens=8)
        writer = PromptWriter(self.tokenizers.t5, self.tokenizers.bert, sizes, stage=1)
        return writer.write(query, [], [0.0, duration / 2], duration, captions)

    def __call__(self, rows: Sequence[TextRow]) -> list[tuple[list[int], np.ndarray]]:
        """Return for each row the positions of the captions in its prompt, and the similarities of its captions."""
        chosen = []
        for first in range(0, len(rows), QUERIES_AT_ONCE):
            part = list(rows[first : first + QUERIES_AT_ONCE])
            part += [part[-1]] * (QUERIES_AT_ONCE - len(part))
            index, used, similarity = jax.device_get(self._choose(self._states, _batch_of(part)))
            chosen += [(row.caption_positions[index[n, used[n]]].tolist(), similarity[n]) for n, row in enumerate(part)]
        return chosen[: len(rows)]


def print_choices(choose: CaptionChooser, captions: Sequence[Caption], duration: float, num_queries: int) -> None:
    """Print how many queries that quote a caption have it in their row, and in their prompt, before and now."""
    quoted = np.random.default_rng(0).choice(len(captions), num_queries, replace=False).tolist()
    queries = [f"somebody says {captions[n].text}" for n in quoted]
    before = [choose.write(query, captions[:BLOCK], duration, 1) for query in queries]
    now = [choose.write(query, captions, duration, BLOCKS) for query in queries]
    few = [choose.write(query, captions[:BLOCK], duration, BLOCKS) for query in queries]
    chosen = {name: choose(rows) for name, rows in (("before", before), ("now", now), ("few", few))}
    for name, rows in (("before", before), ("now", now)):
        in_row = sum(n in row.caption_positions for n, row in zip(quoted, rows, strict=True))
        in_prompt = sum(n in positions for n, (positions, _) in zip(quoted, chosen[name], strict=True))
        print(f"  {name}: of {num_queries} quoted captions {in_row} are in the row, {in_prompt} in the prompt")
    flagged = sum(RowFlag.CAPTIONS_DROPPED in row.row_flags for row in now)
    others = sum(set(a[0]) != set(b[0]) for a, b in zip(chosen["before"], chosen["now"], strict=True))
    same = all(
        a[0] == b[0] and np.array_equal(a[1], b[1][:BLOCK])
        for a, b in zip(chosen["before"], chosen["few"], strict=True)
    )
    print(f"  {others} of {num_queries} prompts have other captions; captions were left out of {flagged} rows")
    print(f"  the first 64 captions alone: {'the same bits' if same else 'OTHER RESULTS'} in one block and in {BLOCKS}")


def _batch_of(rows: Sequence[TextRow]) -> Batch:
    zeros = Batch.zeros(
        len(rows),
        frames=FRAMES,
        image_size=0,
        captions=len(rows[0].caption_bert_tokens),
        bert_tokens=rows[0].query_bert_tokens.size,
        text_tokens=0,
        windows=1,
        answer_tokens=8,
    )
    query, captions = (np.stack([getattr(row, f"{name}_bert_tokens") for row in rows]) for name in ("query", "caption"))
    return replace(zeros, query_bert_tokens=query, caption_bert_tokens=captions)


if __name__ == "__main__":
    main()
