"""Crops on the device against numpy on the host, and against the original's."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.distributed.sharding import BATCH_AXES, make_mesh, put_batch
from calce_jax.input_pipeline.augment import Crop, sample_crop
from calce_jax.models.calce import Calce
from calce_jax.models.crops import bicubic_weights, crop_and_resize, resize, resize_weights
from calce_jax.models.feature_codec import load_or_encode
from tests.helpers import host_crops, tiny_model
from tests.helpers.recordings_io import load_recording

SIZE = 28
# Parts of every border, a strip, a pixel, the whole frame; the last is that of a padding row.
CROPS = [(0, 3, 20, 25), (8, 0, 20, 28), (3, 2, 25, 26), (0, 0, 28, 1), (27, 27, 1, 1), (0, 0, 28, 28), (5, 6, 17, 17)]
PADDING = (0, 0, 0, 0)
BATCH = np.array([*CROPS, PADDING], np.int32)
CLIPS = np.random.default_rng(0).integers(0, 256, (len(BATCH), 2, SIZE, SIZE, 3), np.uint8)
CLOSE = 2e-4  # of values of 0 to 255; one float32 step at 255 is 1.5e-5


cropped = jax.jit(crop_and_resize, static_argnames=("size", "behaviour"))


@partial(jax.jit, static_argnames="size")
def resized(clips, crop, size):
    """Return the frames of clips resized, before the conversion to uint8."""
    weights = resize_weights(crop, *clips.shape[2:4], size)
    return jax.vmap(lambda frame: resize(frame, *weights), in_axes=1, out_axes=1)(clips)


@pytest.mark.parametrize("behaviour", ["default", "reference"])
def test_pixels_are_those_of_the_host(behaviour):
    ours = np.asarray(cropped(CLIPS, BATCH, size=SIZE, behaviour=behaviour))
    assert ours.dtype == np.uint8
    overshoot = 0.0
    for clip, crop, here in zip(CLIPS, map(Crop._make, CROPS), ours, strict=False):
        values = host_crops.bicubic_resize(clip, crop, SIZE)
        # A byte ends at a half in the default, at a whole number in the reference; close to that, float32 decides.
        offset = values - (0.5 if behaviour == "default" else 0.0)
        decided = np.abs(offset - np.round(offset)) > CLOSE
        assert decided.mean() > 0.8 or min(crop[2:]) == 1 or crop[2:] == (SIZE, SIZE)
        expected = host_crops.crop_and_resize(clip, crop, SIZE, behaviour)
        np.testing.assert_array_equal(here[decided], expected[decided], err_msg=str(crop))
        overshoot = max(overshoot, values.max() - 255)
    assert overshoot > 20
    assert not ours[-1].any(), "padding rows are black"
    whole = CROPS.index((0, 0, SIZE, SIZE))
    np.testing.assert_array_equal(ours[whole], CLIPS[whole])


def test_weights_are_those_of_float64():
    """At full size too: the positions are computed in integers."""
    lengths = np.array([1, 2, 113, 158, 167, 203, 223, 224], np.int32)
    starts = (224 - lengths) // 2
    ours = np.asarray(bicubic_weights(jnp.asarray(starts), jnp.asarray(lengths), 224, 224))
    for start, length, matrix in zip(starts, lengths, ours, strict=True):
        expected = np.zeros((224, 224), np.float32)
        expected[:, start : start + length] = host_crops.bicubic_weights(int(length), 224)
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=2.5e-7, err_msg=str(length))


def test_crops_are_resized_as_the_original_does(shared):
    """PyTorch computes positions in float32, off by up to 3e-4 in values of 0 to 255, so bytes may differ."""
    arrays = load_recording(shared, "11_frames")
    clip = arrays["raw_clip_cthw"].transpose(1, 2, 3, 0).astype(np.uint8)
    assert np.array_equal(clip.transpose(3, 0, 1, 2), arrays["raw_clip_cthw"])
    crops = arrays["train_crops_ijhw"].astype(np.int32)
    clips = np.tile(clip, (len(crops), 1, 1, 1, 1))
    floats = np.asarray(resized(clips, crops, size=20))
    wrapped = np.asarray(cropped(clips, crops, size=20, behaviour="reference"))
    for i in range(len(crops)):
        values, expected = (arrays[f"train_{what}_{i}"].transpose(1, 2, 3, 0) for what in ("resized_float", "uint8"))
        np.testing.assert_allclose(floats[i], values, atol=5e-4)
        near_whole = np.abs(values - np.round(values)) < 5e-4
        assert near_whole.mean() < 0.05
        np.testing.assert_array_equal(wrapped[i][~near_whole], expected[~near_whole])


def test_each_device_crops_its_own_clips():
    mesh = make_mesh("a100x4")
    with jax.set_mesh(mesh):
        program = cropped.lower(*put_batch((CLIPS, BATCH), mesh), size=SIZE, behaviour="default").compile()
        ours = program(*put_batch((CLIPS, BATCH), mesh))
    assert ours.sharding.spec[0] == BATCH_AXES
    assert not any(name in program.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))
    np.testing.assert_array_equal(ours, cropped(CLIPS, BATCH, size=SIZE, behaviour="default"))


def test_the_model_encodes_cropped_frames(monkeypatch):
    def pixels(model, frames):
        return frames.reshape(*frames.shape[:2], -1, 3).astype(jnp.float32)

    monkeypatch.setattr(Calce, "encode_frames", pixels)
    graph, *weights = tiny_model.make_model()
    model, batch = nnx.merge(graph, *weights), tiny_model.make_batch((8, 5, 3, 6))
    crops = [sample_crop(np.random.default_rng(row), SIZE, SIZE) for row in range(4)]
    encode = jax.jit(lambda batch: load_or_encode(model, batch, "reference"))
    ours = encode(replace(batch, crop=np.array(crops, np.int32))).reshape(batch.frames.shape)
    expected = [
        host_crops.crop_and_resize(clip, crop, SIZE, "reference")
        for clip, crop in zip(batch.frames, crops, strict=True)
    ]
    assert (np.asarray(ours) != np.stack(expected)).mean() < 1e-3  # where a value is close to the end of a byte
    np.testing.assert_array_equal(encode(batch).reshape(batch.frames.shape), batch.frames)
