"""The share of padding in prompts: `python -m benchmarks.padding --annotations=DIR --tokenizers=DIR --out=DIR`.

Prompt lengths are simulated for the queries of QVHighlights and Charades-STA, for both stages. Text, times and stage-1
windows come from the annotations (DIR/qvh/train_stage2.json, ..., in the original's format), written by `PromptWriter`.
Key frames come from our selection with the dataset's settings on features of the demo's videos: each query gets a
random one, with a random crop for training. The annotations have no captions: a query of QVHighlights gets zero to five
of 18 tokens each, with equal probabilities.

Prints a table with a row for each split and stage, and writes DIR/padding.json.
"""

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calce_jax.config import RunConfig, validate
from calce_jax.inference.predict_step import make_encode_video
from calce_jax.inference.trained_run import load_base_model
from calce_jax.input_pipeline.augment import sample_crop
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.models import prompt_packing as packing
from calce_jax.models.calce import normalise_queries
from calce_jax.models.crops import crop_and_resize
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.keyframes.fine import select_fine
from calce_jax.moments.annotations import Annotation, read_annotations
from calce_jax.presets.datasets import DATASETS
from calce_jax.presets.sizes import TOKENS_PER_FRAME, prompt_buckets
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.text.captions import read_srt, speech_intervals
from calce_jax.text.prompt import PromptWriter, mentions_speech, stage1_windows
from calce_jax.text.text_row import TextSizes
from calce_jax.text.tokenizers import Tokenizers, load_bert, load_t5
from calce_jax.video.decode import read_frames
from configs.calce import get_config
from data.shapes.demo_pipeline import stage_config
from data.shapes.write import write_shapes

# By folder of the annotations, which is also a name of the preset.
SPLITS = {"qvh": ("train", "val"), "charades": ("train", "test")}
MAX_CAPTIONS, CAPTION_TOKENS = 5, 18
FRAMES_PER_VIDEO = 150  # T, encoded frames; both datasets and stages subsample these
NUM_BUCKETS_BEFORE = 4  # number of compiled lengths before batches were regrouped
CHUNK_SIZE = 50


@dataclass(frozen=True)
class EncodedVideos:
    """Features of N videos of the demo, the whole frames and a random crop, and their speech masks."""

    means: np.ndarray  # (2, N, T, D)
    queries: np.ndarray  # (2, N, T, Q * W), each query token of norm 1
    has_speech: np.ndarray  # (N, T)


def main() -> None:
    """Simulate prompt lengths, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="folder of qvh/ and charades/")
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder of t5/ and bert/")
    parser.add_argument("--out", type=Path, required=True, help="output folder of the demo's videos and the table")
    parser.add_argument("--videos", type=int, default=60, help="number of videos of the demo")
    parser.add_argument("--queries", type=int, default=2000, help="at most so many of each split")
    args = parser.parse_args()
    encoded_videos, rows = encode_videos(args.out, args.videos), []
    tokenizers = Tokenizers(load_t5(args.tokenizers / "t5"), load_bert(args.tokenizers / "bert"))
    print("| split | stage | tokens: mean, 5 to 95 % | batch | 4 lengths | 8 lengths | 8, grouped | lengths in use |")
    print("|---|---|---|---|---|---|---|---|")
    for dataset, splits in SPLITS.items():
        for split in splits:
            annotations = read_annotations(args.annotations / dataset / f"{split}_stage2.json")
            sampled = np.random.default_rng(0).permutation(len(annotations))[: args.queries]
            for stage in (1, 2):
                run = validate(get_config(f"{dataset},stage={stage}"))
                lengths = simulate_prompt_lengths(
                    run, [annotations[i] for i in sampled], encoded_videos, tokenizers, training=split == "train"
                )
                for batch in (run.data.batch,) if split == "train" else (run.data.eval_batch, 16):
                    row = padding_stats(run, lengths, batch) | {"dataset": dataset, "split": split, "stage": stage}
                    rows.append(row)
                    print(table_line(row), flush=True)
    write_atomic(args.out / "padding.json", json.dumps(rows, indent=2) + "\n")


def encode_videos(out: Path, videos: int) -> EncodedVideos:
    """Write and encode videos of the demo, or read the features that an earlier run stored."""
    cache_file = out / f"videos_{videos}.npz"
    if not cache_file.exists():
        write_shapes(out / "shapes", {"train": videos}, 0)
        base_model = load_base_model(replace(stage_config(out, 1), mesh="single"))
        encode_video, size = jax.jit(make_encode_video(base_model.graph)), base_model.model_config.vit.image_size
        crop_video = jax.jit(partial(crop_and_resize, size=size))
        rng = np.random.default_rng(0)
        means, queries, has_speech = [], [], []
        for path in tqdm(sorted((out / "shapes" / "videos").iterdir())[:videos], desc="encode", unit="video"):
            video = read_frames(path, FRAMES_PER_VIDEO, size)
            crop = np.array([sample_crop(rng, size, size)], np.int32)
            with jax.set_mesh(base_model.mesh):
                clip_features = [
                    jax.device_get(encode_video(base_model.trainable, base_model.frozen, clip))
                    for clip in (video.frames[None], crop_video(video.frames[None], crop))
                ]
            means.append([clip.means[0] for clip in clip_features])
            queries.append([np.asarray(normalise_queries(jnp.asarray(clip.queries)))[0] for clip in clip_features])
            captions = read_srt(out / "shapes" / "srts" / f"{path.stem}.srt")
            has_speech.append(mark_speech_frames(speech_intervals(captions), video.duration, FRAMES_PER_VIDEO))
        content = io.BytesIO()
        arrays = {"means": np.swapaxes(means, 0, 1), "queries": np.swapaxes(queries, 0, 1)}
        np.savez(content, allow_pickle=False, **arrays, has_speech=np.array(has_speech))
        write_atomic(cache_file, content.getvalue())
    with np.load(cache_file) as stored:
        return EncodedVideos(**stored)


def simulate_prompt_lengths(
    run: RunConfig, rows: Sequence[Annotation], encoded_videos: EncodedVideos, tokenizers: Tokenizers, *, training: bool
) -> np.ndarray:
    """Return the number of tokens of the prompt of every query, (N,)."""
    data, count = run.data, len(rows)
    sizes = TextSizes(data.frames, 1, run.text.bert_tokens, run.text.text_tokens, run.text.answer_tokens)
    writer = PromptWriter(tokenizers.t5, tokenizers.bert, sizes, stage=run.stage)
    rng = np.random.default_rng(1)
    video_index = rng.integers(len(encoded_videos.has_speech), size=count)
    frames = (np.arange(data.frames) * FRAMES_PER_VIDEO) // data.frames
    view = encoded_videos.means[int(training)] if run.stage == 1 else encoded_videos.queries[int(training)]
    spans, times = [], np.zeros((count, data.frames), np.float32)
    windows = np.zeros((count, run.text.windows, 2), np.float32)
    window_mask = np.zeros((count, run.text.windows), bool)
    for n, row in enumerate(rows):
        assert row.duration is not None, "annotations of both datasets have durations"
        times[n] = np.arange(data.frames) * (row.duration / data.frames)
        stage1, _ = stage1_windows(row.stage1_windows, row.duration)
        stage1 = stage1[: run.text.windows]
        windows[n, : len(stage1)], window_mask[n, : len(stage1)] = stage1, True
        spans.append(writer.write(row.query, row.items, times[n], row.duration, stage1_windows=stage1).spans)
    inputs = {
        "times": times,
        "windows": windows,
        "window_mask": window_mask,
        "is_speech_query": np.array([data.use_captions and mentions_speech(row.query) for row in rows]),
        "spans": np.array(spans),
    }
    prompt_lengths, parts = jax.jit(partial(prompt_tokens, run)), []
    for start in range(0, count, CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        chunk_features = {
            "features": view[video_index[chunk]][:, frames],
            "has_speech": encoded_videos.has_speech[video_index[chunk]][:, frames],
        }
        parts.append(prompt_lengths(**chunk_features, **{name: array[chunk] for name, array in inputs.items()}))
    caption_tokens = rng.integers(MAX_CAPTIONS + 1, size=count) * CAPTION_TOKENS if data.use_captions else 0
    return np.concatenate(parts) + caption_tokens


def prompt_tokens(
    run: RunConfig,
    *,
    features: Any,
    times: Any,
    windows: Any,
    window_mask: Any,
    is_speech_query: Any,
    has_speech: Any,
    spans: Any,
) -> Any:
    """Return the number of tokens of prompts without captions; arguments as of `select_coarse` and `select_fine`."""
    frame_mask = jnp.ones(times.shape, bool)
    options = {
        "clusters": run.keyframes.clusters,
        "dilation": run.keyframes.dilation,
        "is_speech_query": is_speech_query,
        "has_speech": has_speech,
    }
    if run.stage == 1:
        plan = select_coarse(features, frame_mask, mode=run.keyframes.mode, **options)
    else:
        filter_dilation = run.keyframes.filter_dilation
        plan = select_fine(
            features, times, frame_mask, windows, window_mask, filter_dilation=filter_dilation, **options
        )
    unused = jnp.zeros((len(times), 1), bool)
    choice = packing.CaptionSelection(
        caption_index=unused.astype(jnp.int32), is_used=unused, similarity=unused.astype(jnp.float32)
    )
    full, compressed = TOKENS_PER_FRAME[run.model.size]
    return packing.count_prompt_tokens(plan, spans, choice, full_tokens=full, compressed_tokens=compressed)


def padding_stats(run: RunConfig, lengths: np.ndarray, batch: int) -> dict[str, Any]:
    """Return the share of padding with fewer lengths, with today's, and with regrouped batches."""
    defaults = DATASETS[run.data.dataset](run.stage, run.model.size)
    few_buckets = prompt_buckets(
        run.model.size,
        run.data.frames,
        run.stage,
        text_tokens=defaults.typical_text_tokens,
        num_buckets=NUM_BUCKETS_BEFORE,
    )
    shuffled = lengths[: len(lengths) // batch * batch]
    windows = [shuffled[at : at + batch * run.data.group] for at in range(0, len(shuffled), batch * run.data.group)]
    grouped = np.concatenate([np.sort(window) for window in windows])
    padding, used = padding_share(grouped, batch, run.text.buckets)
    return {
        "mean": lengths.mean(),
        "low": np.percentile(lengths, 5),
        "high": np.percentile(lengths, 95),
        "batch": batch,
        "before": padding_share(shuffled, batch, few_buckets)[0],
        "lengths": padding_share(shuffled, batch, run.text.buckets)[0],
        "grouped": padding,
        "compiled": len(run.text.buckets),
        "used": used,
    }


def padding_share(lengths: np.ndarray, batch: int, compiled: Sequence[int]) -> tuple[float, int]:
    """Return the share of padding of consecutive batches, and the number of compiled lengths that they use."""
    batches = lengths.reshape(-1, batch)
    bucket_index = np.minimum(np.searchsorted(compiled, batches.max(axis=1)), len(compiled) - 1)
    chosen = np.array(compiled)[bucket_index]
    return 1 - np.minimum(batches, chosen[:, None]).sum() / (chosen.sum() * batch), len(set(bucket_index.tolist()))


def table_line(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    name = f"{row['dataset']} {row['split']}"
    size = f"{row['mean']:.0f}, {row['low']:.0f} to {row['high']:.0f}"
    parts = (f"{100 * row[field]:.1f} %" for field in ("before", "lengths", "grouped"))
    used = f"{row['used']} of {row['compiled']}"
    return f"| {name} | {row['stage']} | {size} | {row['batch']} | {' | '.join(parts)} | {used} |"


if __name__ == "__main__":
    main()
