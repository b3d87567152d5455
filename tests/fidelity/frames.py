"""11: which frames are taken and when, and what training and evaluation make of their pixels."""

import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from calce_jax.input_pipeline.augment import Crop, crop_and_resize, draw_crop, resize
from calce_jax.models.vit import MEAN, STD, normalise
from calce_jax.video.decode import head_indices
from tests.fidelity.folder import Folder
from tests.fidelity.report import Group

SECONDS = 1e-7  # one rounding of float32
NORMALISED = 5e-7  # one rounding of the division, one of the subtraction
# PyTorch finds the places in float32, which moves values by 3e-4 of 255. As near to a whole one, bytes differ.
RESIZED = 2e-6
NEAR_WHOLE = 5e-4
STANDARD_ERRORS = 4.0


def frames(folder: Folder) -> Iterator[Group]:
    """Compare the indices and times of frames, crops, bytes and normalised pixels."""
    recorded, arrays = folder.json("11_frames"), folder.arrays("11_frames")
    indices, times = Group("11_frames/indices"), Group("11_frames/times", SECONDS)
    yield from (indices, times)
    parts = [case for case in recorded["cases"] if case["clip"] is not None]
    for wanted in recorded["cases"]:
        if wanted["clip"] is None:
            label = f"{wanted['n_frms']} frames of {wanted['vlen']}"
            with indices.case(label) as case:
                case.same(head_indices(wanted["vlen"], wanted["n_frms"]), wanted["head"])
            with times.case(label) as case:
                seconds = (head_indices(wanted["vlen"], wanted["n_frms"]) / wanted["fps"]).astype(np.float32)
                case.close(seconds, wanted["timestamps_stage1"], "stage 1")
                case.close(np.round(seconds, 2), wanted["timestamps_stage2"], "stage 2")
    if parts:
        indices.remark(f"not compared: {len(parts)} cases of reading a part of a video, which CALCE never does")

    pixels = Group("11_frames/pixels", NORMALISED)
    yield pixels
    with pixels.case("mean and spread") as case:
        case.same([list(MEAN), list(STD)], [recorded["mean"], recorded["std"]])
    clip = _thwc(arrays["raw_clip_cthw"]).astype(np.uint8)
    with pixels.case("evaluation") as case:
        case.close(normalise(jnp.asarray(clip)), _thwc(arrays["eval_out"]))
    resized, cast = Group("11_frames/crops", RESIZED), Group("11_frames/bytes")
    yield from (resized, cast)
    near = 0
    for number, crop in enumerate(arrays["train_crops_ijhw"].tolist()):
        label = f"crop {number}"
        size = arrays[f"train_resized_float_{number}"].shape[-1]
        values, wrapped = (_thwc(arrays[f"train_{what}_{number}"]) for what in ("resized_float", "uint8"))
        with resized.case(label) as case:
            case.close(resize(clip, Crop(*crop), size), values)
        with cast.case(label) as case:
            sure = np.abs(values - np.round(values)) >= NEAR_WHOLE
            near += int((~sure).sum())
            case.same(crop_and_resize(clip, Crop(*crop), size, "reference")[sure], wrapped[sure])
        with pixels.case(label) as case:
            case.close(normalise(jnp.asarray(wrapped)), _thwc(arrays[f"train_out_{number}"]))
    cast.remark(f"apart: {near} values within {NEAR_WHOLE} of a whole number, where PyTorch's float32 decides")

    for name in list(arrays):
        if found := re.fullmatch(r"rrc_samples_(\d+)", name):
            group = Group("11_frames/drawn crops", STANDARD_ERRORS)
            group.remark("a distribution: the deviation of means of places, sizes and ratios in standard errors")
            yield group
            with group.case(f"{len(arrays[name])} crops of {found[1]} pixels") as case:
                _compare_draws(case, arrays[name].astype(np.float64), int(found[1]))


def _compare_draws(case, theirs: np.ndarray, side: int) -> None:
    rng = np.random.default_rng(0)
    ours = np.array([draw_crop(rng, side, side) for _ in range(len(theirs))], np.float64)

    def measures(crops: np.ndarray) -> np.ndarray:
        top, left, height, width = crops.T
        area, ratio = height * width / side**2, np.log(width / height)
        return np.stack([top, left, height, width, area, ratio, area**2, ratio**2, top * left], axis=1)

    a, b = measures(ours), measures(theirs)
    error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
    case.close((a.mean(axis=0) - b.mean(axis=0)) / error, np.zeros(a.shape[1]), scale=1.0)
    case.same(bool((ours[:, :2] + ours[:, 2:] <= side).all()), True, "inside the frame")


def _thwc(recorded: np.ndarray) -> np.ndarray:
    """Put time first and colours last."""
    return recorded.transpose(1, 2, 3, 0)
