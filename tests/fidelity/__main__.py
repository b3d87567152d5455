"""The command: compare all groups and print a table; the exit code is 1 if any row differs."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from tests.fidelity import frames, language, scores, selection, speech, text, training, vision, whole
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Group, ReportRow, absent, all_equal, as_text, failed, write_json, write_page

Comparison = Callable[[RecordingFolder], Iterator[Group]]

COMPARISONS: dict[str, Comparison] = {
    "01_vit": vision.vit,
    "02_qformer": language.qformer,
    "03_t5": language.t5,
    "03_t5_beam": language.beams,
    "04_cluster": selection.clusters,
    "05_keyframes_stage1": selection.first_stage,
    "06_keyframes_stage2": selection.second_stage,
    "07_prompts": text.prompts,
    "07_tokenizer_stats": text.tokenizer_statistics,
    "08_subtitles": text.subtitles,
    "09_postprocess": text.postprocess,
    "10_metrics_annotations": scores.published,
    "10_metrics_synthetic": scores.synthetic,
    "10_metrics_standalone": scores.standalone,
    "11_frames": frames.frames,
    "12_lr_optim": training.rates_and_groups,
    "13_e2e": whole.end_to_end,
    "13_e2e_b1": whole.alone,
    "14_param_counts": training.counts,
    "15_whisper": speech.whisper,
}
# Files of groups that are not NAME.npz, NAME.json and NAME_meta.json.
FILES = {
    "03_t5_beam": ("03_t5_beam*.npz",),
    "13_e2e": ("13_e2e.npz", "13_e2e_meta.json", "13_e2e_state_dict.npz"),
    "15_whisper": ("15_whisper_*.npz",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the table and write the reports.

    Returns:
      The exit code: 0 if anything was compared and nothing differs, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description="Compare with recordings.")
    parser.add_argument("--golden", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--json", type=Path, help="file to write the rows to, as JSON")
    parser.add_argument("--page", type=Path, help="Markdown page whose table, between two markers, is replaced")
    parser.add_argument("--only", default="", help="regular expression of the groups to compare")
    parser.add_argument(
        "--beside",
        type=Path,
        default=Path(os.environ.get("CALCE_SHARED", Path(__file__).parents[3] / "shared")),
        help="folder of tokenizers, annotations and weights, if they are not beside the recordings",
    )
    args = parser.parse_args(arguments)
    rows = list(compare(RecordingFolder(args.golden, args.beside), args.only))
    print(as_text(rows))
    if args.json:
        write_json(args.json, rows)
    if args.page:
        write_page(args.page, rows)
    return 0 if all_equal(rows) else 1


def compare(folder: RecordingFolder, only: str = "") -> Iterator[ReportRow]:
    """Yield the rows of the groups whose names match `only`; if it is empty, also a failed row per file not opened.

    A group without any of its files is absent; one that has some of them but needs others has failed.
    """
    unfinished: list[str] = []
    for name, comparison in COMPARISONS.items():
        if re.search(only, name):
            files = FILES.get(name, (f"{name}.npz", f"{name}.json", f"{name}_meta.json"))
            if not folder.has_any(files):
                yield absent(name, files)
                continue
            rows, finished = _run_comparison(name, comparison, folder)
            yield from rows
            unfinished += [] if finished else [name]
    for file in folder.unopened() if not only else ():
        if not file.startswith(tuple(unfinished)):
            yield failed(file, "there is no comparison for this file")


def _run_comparison(name: str, comparison: Comparison, folder: RecordingFolder) -> tuple[list[ReportRow], bool]:
    groups: list[Group] = []
    error: Exception | None = None
    print(f"{name} ...", file=sys.stderr)
    try:
        groups.extend(comparison(folder))
    except Exception as caught:
        error = caught
    if groups and (uncompared := folder.not_compared(name)):
        groups[-1].add_note(uncompared)
    return [group.row() for group in groups] + ([] if error is None else [failed(name, error)]), error is None


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "float32")
    sys.exit(main())
