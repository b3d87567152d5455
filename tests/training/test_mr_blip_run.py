"""Mr. BLIP trains, evaluates and predicts by the code of CALCE's stage 1."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from calce_jax.config import packaged_path, read_config
from calce_jax.datasets.tables import build_tables
from calce_jax.distributed.param_names import named_leaves
from calce_jax.inference.predict_split import predict_split
from calce_jax.inference.trained_run import load_trained_model
from calce_jax.presets.runs import get_preset
from calce_jax.presets.sizes import IMAGE_SIZES
from calce_jax.training.run import train_run
from calce_jax.training.run_data import open_run_data
from calce_jax.video.decode import encode_jpeg
from tests.helpers.stored_features import FRAMES, TRAIN, VAL, make_video


def make_large_video(video):
    """Return a video whose frames have the size of the packaged model's."""
    record = make_video(video)
    size = IMAGE_SIZES["tiny"]
    noise = np.random.default_rng(len(video)).integers(0, 256, (len(record.jpegs), size, size, 3), np.uint8)
    return replace(record, jpegs=encode_jpeg(noise))


@pytest.mark.release
@pytest.mark.slow
def test_a_run(tmp_path):
    build_tables(tmp_path / "prepared", "shapes", {"train": TRAIN, "val": VAL}, make_large_video)
    config = get_preset("shapes,method=mr_blip")
    config = replace(
        config,
        mesh="single",
        data=replace(config.data, directory=str(tmp_path / "prepared"), frames=FRAMES, batch=2, eval_batch=2),
        schedule=replace(config.schedule, epochs=1, warmup_steps=0),
    )
    state = train_run(config, tmp_path / "run", open_run_data(config))
    assert int(state.step) == len(TRAIN) // 2
    assert read_config(tmp_path / "run").method == "mr_blip"
    base = load_file(packaged_path(config.weights.base))
    trained = {name: np.asarray(leaf) for name, leaf in named_leaves(state.trainable).items()}
    change = {name: np.abs(trained[name] / base[name] - 1).max() for name in ("query_proj/kernel", "t5_proj/kernel")}
    # No frame is compressed: `query_proj` has no gradient, and only its weight decays.
    decay = int(state.step) * config.schedule.peak * config.optimizer.weight_decay
    assert change["query_proj/kernel"] == pytest.approx(decay, rel=0.01)
    assert change["t5_proj/kernel"] > 10 * decay
    predictions = predict_split(load_trained_model(tmp_path / "run"), "val", tmp_path / "val.jsonl")
    assert [prediction.qid for prediction in predictions] == [row.qid for row in VAL]
