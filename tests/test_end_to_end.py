"""The whole model, from video and query to loss and answer, against the original with the same weights."""

import ast
import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.checkpoints.convert.calce import key_mapping
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.models.selection import SelectionConfig
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions, speech_intervals
from calce_jax.text.prompt import PromptWriter, mentions_speech
from calce_jax.text.text_row import TextSizes
from calce_jax.text.tokenizers import load_bert, load_t5
from tests.helpers import recordings_io as golden

pytestmark = pytest.mark.release

FRAMES, LENGTH = 12, 192


@pytest.fixture(scope="module")
def model(shared):
    sizes = json.loads((shared / "golden" / "config.json").read_text())["13_e2e"]
    vit, qformer, t5 = sizes["vit"], sizes["qformer"], sizes["t5"]
    config = CalceConfig(
        VitConfig(vit["img"], 14, vit["dim"], vit["depth"], vit["heads"], vit["mlp_hidden"]),
        QFormerConfig(
            qformer["hidden"],
            qformer["layers"],
            qformer["heads"],
            qformer["ffn"],
            qformer["queries"],
            image_width=vit["dim"],
        ),
        T5Config(t5["d_model"], t5["heads"], t5["d_kv"], t5["d_ff"], t5["enc"], t5["dec"]),
        LoraConfig(),
        compressed_query_tokens=2,
    )
    tensors = golden.load_recording(shared, "13_e2e_state_dict")
    return golden.load_state_dict(
        nnx.eval_shape(lambda: Calce(config, rngs=nnx.Rngs(0))), key_mapping(lora=True), tensors
    )


@pytest.fixture(scope="module")
def recorded(shared):
    return golden.load_recording(shared, "13_e2e"), golden.load_recording(shared, "13_e2e_b1")


@pytest.fixture(scope="module")
def features(model, recorded):
    """Return the vision tower's tokens (B, T, P, D); the recorded videos are normalised already."""
    video = np.moveaxis(recorded[0]["video"], 2, -1)
    tokens = nnx.jit(lambda model, frames: model.vit(frames))(model, jnp.asarray(video.reshape(-1, *video.shape[2:])))
    return tokens.reshape(*video.shape[:2], *tokens.shape[1:])


@pytest.fixture(scope="module")
def batches(shared, recorded):
    """Return a batch of one sample for every stage and sample."""
    tokenizers = load_t5(shared / "tokenizers" / "t5"), load_bert(shared / "tokenizers" / "bert")
    meta = json.loads((shared / "golden" / "13_e2e_meta.json").read_text())
    sizes = TextSizes(FRAMES, captions=4, bert_tokens=24, text_tokens=LENGTH, answer_tokens=16)
    writers = {stage: PromptWriter(*tokenizers, sizes, stage=stage, behaviour="reference") for stage in (1, 2)}
    return {
        (stage, sample): make_batch(
            meta[f"stage{stage}"], sample, recorded[0][f"s{stage}_timestamps"][sample], writers[stage]
        )
        for stage in (1, 2)
        for sample in (0, 1)
    }


def make_batch(meta, sample, times, writer):
    fields, duration = {name: column[sample] for name, column in meta["samples"].items() if name != "iters"}, 150
    query = fields["query_prompt"].removeprefix("Query: ").removesuffix("\n")
    items = fields["item_prompt"].removeprefix("Items: ").removesuffix("\n").split(",")
    captions = [Caption(caption["start"], caption["end"], caption["text"]) for caption in fields["subtitles"]]
    windows = ast.literal_eval(fields.get("stage1_result", "[[0, 150]]"))
    text = writer.write(
        query,
        items,
        times,
        duration,
        clean_captions(captions),
        true_windows=ast.literal_eval(fields["relevant_windows"]),
        stage1_windows=windows,
    )
    batch = Batch.zeros(
        1,
        frames=FRAMES,
        image_size=0,
        captions=len(text.caption_bert_tokens),
        bert_tokens=len(text.query_bert_tokens),
        text_tokens=len(text.tokens),
        windows=len(windows),
        answer_tokens=len(text.labels),
    )
    fields = {
        "times": np.asarray(times, np.float32),
        "duration": np.float32(duration),
        "tokens": text.tokens,
        "spans": text.spans,
        "query_bert_tokens": text.query_bert_tokens,
        "caption_bert_tokens": text.caption_bert_tokens,
        "is_speech_query": np.bool_(mentions_speech(query, "reference")),
        "has_speech": mark_speech_frames(speech_intervals(captions, "reference"), duration, FRAMES),
        "stage1_windows": np.asarray(windows, np.float32),
        "labels": text.labels,
        "example_index": np.int32(sample),
    }
    masks = {name: np.ones_like(getattr(batch, name)) for name in ("frame_mask", "window_mask", "row_mask")}
    batch = dataclasses.replace(batch, **masks, **{name: value[None] for name, value in fields.items()})
    return jax.tree.map(jnp.asarray, batch)


def selection(stage):
    return SelectionConfig(stage=stage, clusters=6, dilation=1, filter_dilation=1, behaviour="reference")


@partial(jax.jit, static_argnames=("graph", "stage"))
def run(graph, state, features, batch, stage):
    model = nnx.merge(graph, state)
    prompt_selection = model.select(features, batch, selection(stage))
    loss = model.loss(features, batch, prompt_selection, LENGTH, behaviour="reference")
    x, mask = model.embed_prompt(features, batch, prompt_selection, LENGTH)
    memory = model.t5.encode(x, mask)
    answers = beam_search(model.t5, memory, mask, num_beams=5, max_length=70, behaviour="reference")
    return prompt_selection, loss, x, mask, answers


@pytest.fixture(scope="module", params=[(1, 0), (1, 1), (2, 0), (2, 1)], ids="stage {0[0]}, sample {0[1]}".format)
def case(request, model, features, batches):
    """Return a stage, a sample, and the outputs for that sample alone."""
    stage, sample = request.param
    return stage, sample, run(*nnx.split(model), features[sample][None], batches[stage, sample], stage)


def test_a_batch_of_one_as_recorded(case, recorded):
    batched, alone = recorded
    stage, sample, (prompt_selection, loss, x, mask, answers) = case
    name = f"s{stage}_{sample}"
    prompt_length = int(alone[f"{name}_attention_mask"].sum())
    assert int(prompt_selection.prompt_lengths[0]) == prompt_length
    assert int(mask.sum()) == prompt_length
    # In a batch the original pads at any position; the embeddings of real positions are the same.
    expected_embeddings = batched[f"s{stage}_inputs_embeds"][sample][batched[f"s{stage}_attention_mask"][sample] != 0]
    np.testing.assert_allclose(x[0, :prompt_length], expected_embeddings, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss[0], alone[f"{name}_loss"], rtol=1e-5)
    expected = alone[f"{name}_gen_sequences"][0, 1:]
    np.testing.assert_array_equal(answers.tokens[0, 0, : len(expected)], expected)
    assert not np.asarray(answers.tokens[0, 0, len(expected) :]).any()
    np.testing.assert_allclose(answers.score[0, 0], alone[f"{name}_gen_scores"][0], rtol=1e-5)
