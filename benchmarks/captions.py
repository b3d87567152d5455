"""How many captions a file of subtitles has for a model, and which a prompt gets: `python -m benchmarks.captions`.

Prints, for each file of --srt, the captions of its segments of 150 s (QVHighlights) and 40 s (the tiny model), which a
search makes of a long video, and of the file as one video, as training reads it: how many exceed one block, which was
the limit of versions before blocks, and all blocks. Then the tiny model chooses among the captions of the whole file
and of its segments, for queries that quote a caption drawn at random ("somebody says ..."): among the first block of
captions alone, among those of all blocks, and among all captions.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.distributed.param_names import Params
from calce_jax.inference.trained_run import load_base_model
from calce_jax.models.selection import SelectionConfig
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.segments import segment_captions, split_into_segments
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions, read_srt
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import RowFlag, TextRow, TextSizes

BLOCKS = 8
FRAMES, QUERIES_AT_ONCE, DURATION = 2, 4, 100.0


@dataclass(frozen=True)
class Case:
    """A way to cut a file: into segments of `seconds`, or not; `block` captions are a block of the model."""

    name: str
    seconds: float
    block: int
    choose: bool = True


CASES = (
    Case("segments of 150 s", 150.0, 64, choose=False),
    Case("segments of 40 s", 40.0, 8),
    Case("one video", 1e9, 64),
)


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
        for case in CASES:
            segments = [
                clean_captions(segment_captions(captions, segment))
                for segment in split_into_segments(duration, case.seconds)
            ]
            print_counts(case, segments)
            if case.choose:
                print_choices(choose, case, segments, args.queries)


def print_counts(case: Case, segments: Sequence[Sequence[Caption]]) -> None:
    """Print how many captions the segments have after cleaning, and how many exceed one block, and all."""
    counts = np.array([len(captions) for captions in segments])
    print(f"{case.name}: {len(counts)}, captions {np.median(counts):.0f} (median), {counts.max()} (maximum)")
    for limit in (case.block, case.block * BLOCKS):
        dropped = 100 * np.maximum(counts - limit, 0).sum() / counts.sum()
        print(f"  beyond {limit}: {int((counts > limit).sum())} of them, {dropped:.1f} % of captions")


class CaptionChooser:
    """Chooses captions with the tiny model's text branch."""

    def __init__(self) -> None:
        trained = load_base_model(tiny_config(1))
        self._tokenizers, self._states = trained.tokenizers, (trained.trainable, trained.frozen)
        self._bert_tokens = trained.config.text.bert_tokens

        def choose(states: tuple[Params, Params], batch: Batch, block: int) -> tuple[jax.Array, ...]:
            model = nnx.merge(trained.graph, *states)
            choice = model.select_captions(batch, SelectionConfig(stage=1, caption_block=block))
            return choice.caption_index, choice.is_used, choice.similarity

        self._choose = jax.jit(choose, static_argnames="block")

    def write(self, query: str, captions: Sequence[Caption], max_captions: int) -> TextRow:
        """Return the text row of a query; what limits it is `max_captions` alone."""
        sizes = TextSizes(FRAMES, max_captions, self._bert_tokens, 400 + 300 * max_captions, answer_tokens=8)
        writer = PromptWriter(self._tokenizers.t5, self._tokenizers.bert, sizes, stage=1)
        return writer.write(query, [], [0.0, DURATION / 2], DURATION, captions)

    def __call__(self, rows: Sequence[TextRow], block: int) -> list[tuple[list[int], np.ndarray]]:
        """Return for each row the positions of the captions in its prompt, and the similarities of its captions."""
        chosen = []
        for first in range(0, len(rows), QUERIES_AT_ONCE):
            part = list(rows[first : first + QUERIES_AT_ONCE])
            part += [part[-1]] * (QUERIES_AT_ONCE - len(part))
            index, used, similarity = jax.device_get(self._choose(self._states, _batch_of(part), block))
            chosen += [(row.caption_positions[index[n, used[n]]].tolist(), similarity[n]) for n, row in enumerate(part)]
        return chosen[: len(rows)]


def print_choices(choose: CaptionChooser, case: Case, segments: Sequence[Sequence[Caption]], num_queries: int) -> None:
    """Print what queries get that quote a caption of a segment with more captions than a block."""
    block, rng = case.block, np.random.default_rng(0)
    long = [captions for captions in segments if len(captions) > block]
    about = [long[rng.integers(len(long))] for _ in range(num_queries)]
    quoted = [int(rng.integers(len(captions))) for captions in about]
    queries = [f"somebody says {captions[n].text}" for captions, n in zip(about, quoted, strict=True)]
    longest = -(-max(map(len, long)) // block) * block

    def choices(
        max_captions: int, first: int | None = None
    ) -> tuple[list[TextRow], list[tuple[list[int], np.ndarray]]]:
        rows = [
            choose.write(query, captions[:first], max_captions) for query, captions in zip(queries, about, strict=True)
        ]
        return rows, choose(rows, block)

    first_rows, first_block = choices(block, block)
    rows, blocks = choices(block * BLOCKS)
    _, few = choices(block * BLOCKS, block)
    _, everything = choices(longest)
    for name, of_name in (("the first block", first_rows), ("all blocks", rows)):
        in_row = sum(n in row.caption_positions for n, row in zip(quoted, of_name, strict=True))
        print(f"  {name}: {in_row} of {num_queries} quoted captions are in the row")
    print(f"  captions were left out of {sum(RowFlag.CAPTIONS_DROPPED in row.row_flags for row in rows)} rows")
    for name, chosen in (("the first block", first_block), ("all blocks", blocks)):
        wanted = sum(len(best) for best, _ in everything)
        had = sum(len(set(best) & set(got)) for (best, _), (got, _) in zip(everything, chosen, strict=True))
        print(f"  {name}: {had} of the {wanted} captions that the model chooses among all are in the prompts")
    others = sum(set(a) != set(b) for (a, _), (b, _) in zip(first_block, blocks, strict=True))
    same = all(a[0] == b[0] and np.array_equal(a[1], b[1][:block]) for a, b in zip(first_block, few, strict=True))
    print(f"  {others} of {num_queries} prompts have other captions than with the first block alone")
    print(
        f"  the first block of captions has {'the same bits' if same else 'OTHER RESULTS'} in rows of {BLOCKS} blocks"
    )


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
