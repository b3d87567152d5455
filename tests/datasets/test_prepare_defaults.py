"""`calce prepare` without --frames and --image_size makes what the presets of its dataset read."""

import dataclasses
import json
import shutil

import pytest

from calce_jax.config import LoraConfig
from calce_jax.datasets.prepared_video import load_video
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.presets.runs import DATASETS, get_preset
from calce_jax.presets.sizes import IMAGE_SIZES
from calce_jax.search.samples import load_samples
from calce_jax.training.run_data import open_run_data
from calce_jax.video.decode import decode_jpeg
from tests.helpers.commands import run_script


def test_the_sizes_of_frames_are_those_of_the_models():
    lora = LoraConfig(rank=8, alpha=8.0, dropout=0.0)
    for size, pixels in IMAGE_SIZES.items():
        model = CalceConfig.from_name(size, lora, "float32", t5_vocab=64, bert_vocab=64)
        assert model.vit.image_size == pixels, size


def test_stage_2_has_at_least_the_frames_of_stage_1():
    for dataset in DATASETS:
        assert get_preset(f"{dataset},stage=2").data.frames >= get_preset(f"{dataset},stage=1").data.frames


@pytest.mark.slow
def test_both_stages_read_a_dataset_that_was_prepared_with_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    samples = load_samples()
    for sample in samples:
        for file in (sample.video, sample.video.with_suffix(".srt")):
            shutil.copy(file, tmp_path / "videos")
    rows = (samples[0].video.parent / "annotations.jsonl").read_text().splitlines()
    merged = [json.dumps(json.loads(row) | {"stage1_windows": [[0, 9]]}) for row in rows]
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(merged) + "\n")
    folders = ["--videos=videos", "--srts=videos", "--annotations=train.jsonl,val.jsonl", "--out=prepared"]
    run_script("prepare", "--dataset=shapes", *folders)
    for stage in (1, 2):
        preset = get_preset(f"shapes,stage={stage}")
        data = dataclasses.replace(preset.data, directory="prepared", batch=2)
        batch = next(open_run_data(dataclasses.replace(preset, data=data)).train_iterator)
        assert batch.frames.shape == (2, preset.data.frames, 56, 56, 3)

    run_script("prepare", "--dataset=shapes", *folders[:-1], "--out=explicit", "--frames=12", "--image_size=28")
    prepared = load_video(tmp_path / "explicit/videos", samples[0].video.stem)
    assert (len(prepared.jpegs), decode_jpeg(prepared.jpegs[0]).shape) == (12, (28, 28, 3))
