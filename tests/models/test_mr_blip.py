"""Mr. BLIP with CALCE's parts: every frame in full with its time, then the query; no captions and no items."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.config import ConfigError, GenerationConfig, packaged_path, to_dict, validate
from calce_jax.inference.prediction import step_config
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.prompt_packing import build_prompt_layout, count_prompt_tokens
from calce_jax.models.selection import CaptionSelection
from calce_jax.presets.runs import get_preset
from calce_jax.text.caption import Caption
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import TextSizes
from calce_jax.text.tokenizers import load_bert, load_t5

QUERY, TASK = "A red circle moves.", "Given the video and the query, find the relevant windows.\nRelevant windows: "
SIZES = TextSizes(frames=5, captions=1, bert_tokens=16, text_tokens=120, answer_tokens=16)
FULL, COMPRESSED = 4, 1


@pytest.fixture(scope="module")
def tokenizers():
    return load_t5(packaged_path("calce_jax/assets/tiny/t5")), load_bert(packaged_path("calce_jax/assets/tiny/bert"))


def select(num_frames, mode="all"):
    """Return the plan of one video with `num_frames` of five frames."""
    return select_coarse(
        jnp.zeros((1, 5, 3)),
        jnp.arange(5)[None] < num_frames,
        mode=mode,
        clusters=1,
        dilation=0,
        is_speech_query=jnp.zeros(1, bool),
        has_speech=jnp.zeros((1, 5), bool),
    )


def test_every_real_frame_is_a_key_frame():
    plan = select(3)
    assert plan.is_keyframe[0].tolist() == plan.slot_mask[0].tolist() == [True, True, True, False, False]
    assert plan.frame_index[0, :3].tolist() == [0, 1, 2]
    assert not select(3, mode="none").is_keyframe.any()


def test_the_prompt_is_the_published_one(tokenizers):
    t5, _ = tokenizers
    writer = PromptWriter(*tokenizers, SIZES, stage=1, method="mr_blip")
    # Captions and items are there and not written: the mode of a run with captions is checked by its config.
    row = writer.write(QUERY, ["red circle"], [0, 2, 5.6], 8, [], true_windows=[[2, 5]])
    tokens, spans = jnp.asarray(row.tokens)[None], jnp.asarray(row.spans)[None]
    none = jnp.zeros((1, 1), bool)
    choice = CaptionSelection(none.astype(jnp.int32), none, none.astype(jnp.float32))
    sizes = {"full_tokens": FULL, "compressed_tokens": COMPRESSED}
    length = int(count_prompt_tokens(select(3), spans, choice, **sizes)[0])
    layout = build_prompt_layout(select(3), tokens, spans, choice, length=length, **sizes)
    parts: list[str | int] = []
    for position in range(length):
        if not layout.is_text[0, position]:
            assert layout.is_keyframe[0, position]
            parts.append(int(layout.slot[0, position]) * FULL + int(layout.query_token[0, position]))
        else:
            parts.append(t5.backend.id_to_token(int(layout.token_id[0, position])))
    frames = [[*range(slot * FULL, (slot + 1) * FULL), second] for slot, second in enumerate(("0", "2", "6"))]
    times = [part for frame in frames for part in frame]
    text = t5.backend.encode(f"Query: {QUERY}\n{TASK}", add_special_tokens=False).tokens
    assert parts == [*times, ">", "8", "<extra_id_0>", *text, "</s>"]
    assert writer.format_text(QUERY, ["red circle"]) == f"Query: {QUERY}\n{TASK}"
    assert PromptWriter(*tokenizers, SIZES, stage=1).format_text(QUERY, ["red circle"]).count("Items: red circle") == 1


def test_a_caption_is_not_written_into_the_end_of_the_captions(tokenizers):
    row = PromptWriter(*tokenizers, SIZES, stage=1, method="mr_blip").write(QUERY, [], [0], 8, [Caption(0, 1, "hello")])
    assert row.spans[-3:-1].tolist() == [[0, 0], [0, 0]]
    calce = PromptWriter(*tokenizers, SIZES, stage=1).write(QUERY, [], [0], 8)
    assert np.all(calce.spans[-3:-1, 1] > 0)


PUBLISHED = {"qvhighlights": (60, 50, 0.0), "charades_sta": (20, 20, 0.0), "activitynet": (60, 50, 3e-5)}


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_presets(dataset):
    config = validate(to_dict(get_preset(f"{dataset},method=mr_blip")))
    schedule = config.schedule
    assert (config.data.frames, schedule.epochs, schedule.floor) == PUBLISHED[dataset]
    assert (config.method, config.stage, schedule.peak, config.data.use_captions) == ("mr_blip", 1, 3e-4, False)
    assert config.optimizer.accumulate * config.data.batch == 32
    assert step_config(config, 8).selection.mode == "all"
    # One prompt length, which holds every frame with its time and the longest text.
    assert len(config.text.buckets) == 1
    assert config.text.buckets[0] >= config.data.frames * 33 + config.text.max_text
    assert get_preset(dataset).method == "calce"
    assert config.generation == GenerationConfig(beams=5, window_order="given")
    assert (config.generation.window_source, config.generation.decision) == ("best_beam", "most_probable")


def test_frames_of_qvhighlights_are_prepared_apart():
    assert get_preset("qvh,method=mr_blip").data.directory == "runs/prepared/qvhighlights_60"
    for dataset in ("charades_sta", "activitynet"):
        first, other = get_preset(f"{dataset},method=mr_blip"), get_preset(f"{dataset},stage=2")
        assert first.data.directory == other.data.directory
        assert other.data.frames % first.data.frames == 0


@pytest.mark.parametrize("option", ["stage=2", "behaviour=reference"])
def test_what_it_does_not_have_is_refused(option):
    with pytest.raises(ConfigError, match="method=mr_blip has stage=1 and behaviour=default alone; leave them out"):
        get_preset(f"shapes,method=mr_blip,{option}")


def test_fields_of_another_method_are_named():
    config = get_preset("shapes,stage=1")
    with pytest.raises(ConfigError) as error:
        validate(to_dict(replace(config, method="mr_blip")))
    assert error.value.reason.splitlines() == [
        "2 fields are wrong:",
        "  config.data.use_captions: must be False with config.method='mr_blip', got True",
        "  config.keyframes.mode: must be 'all' with config.method='mr_blip', got 'cluster'",
    ]
