"""11: indices and times of frames, crops, and normalised pixels of training and evaluation."""

import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from calce_jax.input_pipeline.augment import sample_crop
from calce_jax.models.crops import crop_and_resize, resize, resize_weights
from calce_jax.models.vit import CLIP_MEAN, CLIP_STD, normalise_frames
from calce_jax.video.decode import head_indices
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Group

TIME_TOLERANCE = 1e-7  # one rounding of float32
NORMALISED_TOLERANCE = 5e-7  # one rounding of the division, one of the subtraction
# PyTorch computes the sampling positions in float32, which moves values by 3e-4 of 255; so near to a whole number,
# bytes differ.
RESIZED_TOLERANCE = 2e-6
NEAR_WHOLE = 5e-4
STANDARD_ERRORS = 4.0


def frames(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the indices and times of frames, crops, bytes and normalised pixels."""
    recorded, arrays = folder.json("11_frames"), folder.arrays("11_frames")
    indices, times = Group("11_frames/indices"), Group("11_frames/times", TIME_TOLERANCE)
    yield from (indices, times)
    partial_reads = [case for case in recorded["cases"] if case["clip"] is not None]
    for expected in recorded["cases"]:
        if expected["clip"] is None:
            label = f"{expected['n_frms']} frames of {expected['vlen']}"
            with indices.case(label) as case:
                case.same(head_indices(expected["vlen"], expected["n_frms"]), expected["head"])
            with times.case(label) as case:
                seconds = (head_indices(expected["vlen"], expected["n_frms"]) / expected["fps"]).astype(np.float32)
                case.close(seconds, expected["timestamps_stage1"], "stage 1")
                case.close(np.round(seconds, 2), expected["timestamps_stage2"], "stage 2")
    if partial_reads:
        indices.add_note(
            f"not compared: {len(partial_reads)} cases of reading a part of a video, which CALCE never does"
        )

    pixels = Group("11_frames/pixels", NORMALISED_TOLERANCE)
    yield pixels
    with pixels.case("mean and spread") as case:
        case.same([list(CLIP_MEAN), list(CLIP_STD)], [recorded["mean"], recorded["std"]])
    clip = _thwc(arrays["raw_clip_cthw"]).astype(np.uint8)
    with pixels.case("evaluation") as case:
        case.close(normalise_frames(jnp.asarray(clip)), _thwc(arrays["eval_out"]))
    resized, cast = Group("11_frames/crops", RESIZED_TOLERANCE), Group("11_frames/bytes")
    yield from (resized, cast)
    num_near_whole = 0
    for number, crop in enumerate(arrays["train_crops_ijhw"].tolist()):
        label = f"crop {number}"
        size = arrays[f"train_resized_float_{number}"].shape[-1]
        values, wrapped = (_thwc(arrays[f"train_{what}_{number}"]) for what in ("resized_float", "uint8"))
        # A clip of one crop, and its frames as a batch that all have it.
        box = jnp.asarray([crop], jnp.int32)
        with resized.case(label) as case:
            weights = resize_weights(box.repeat(len(clip), axis=0), *clip.shape[1:3], size)
            case.close(resize(jnp.asarray(clip), *weights), values)
        with cast.case(label) as case:
            is_unambiguous = np.abs(values - np.round(values)) >= NEAR_WHOLE
            num_near_whole += int((~is_unambiguous).sum())
            ours = np.asarray(crop_and_resize(jnp.asarray(clip[None]), box, size, "reference"))[0]
            case.same(ours[is_unambiguous], wrapped[is_unambiguous])
        with pixels.case(label) as case:
            case.close(normalise_frames(jnp.asarray(wrapped)), _thwc(arrays[f"train_out_{number}"]))
    cast.add_note(
        f"apart: {num_near_whole} values within {NEAR_WHOLE} of a whole number, where PyTorch's float32 decides"
    )

    for name in list(arrays):
        if name_match := re.fullmatch(r"rrc_samples_(\d+)", name):
            group = Group("11_frames/drawn crops", STANDARD_ERRORS)
            group.add_note("a distribution: the deviation of means of places, sizes and ratios in standard errors")
            yield group
            with group.case(f"{len(arrays[name])} crops of {name_match[1]} pixels") as case:
                _compare_draws(case, arrays[name].astype(np.float64), int(name_match[1]))


def _compare_draws(case, recorded: np.ndarray, side: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([sample_crop(rng, side, side) for _ in range(len(recorded))], np.float64)

    def measures(crops: np.ndarray) -> np.ndarray:
        top, left, height, width = crops.T
        area, ratio = height * width / side**2, np.log(width / height)
        return np.stack([top, left, height, width, area, ratio, area**2, ratio**2, top * left], axis=1)

    a, b = measures(drawn), measures(recorded)
    error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
    case.close((a.mean(axis=0) - b.mean(axis=0)) / error, np.zeros(a.shape[1]), scale=1.0)
    case.same(bool((drawn[:, :2] + drawn[:, 2:] <= side).all()), True, "inside the frame")


def _thwc(recorded: np.ndarray) -> np.ndarray:
    """Transpose recorded (C, T, H, W) to (T, H, W, C)."""
    return recorded.transpose(1, 2, 3, 0)
