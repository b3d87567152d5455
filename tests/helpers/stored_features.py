"""Videos of noise, their annotations, and stored features of them."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
from flax import nnx

from calce_jax.datasets.tables import VideoRecord
from calce_jax.inference.extract_features import VideoDataset, extract_features
from calce_jax.inference.prediction import step_config
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.feature_store import FrameKeys, checksums
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.models.feature_codec import load_or_encode
from calce_jax.moments.annotations import Annotation
from calce_jax.video.decode import encode_jpeg
from tests.helpers.tiny_model import IMAGE_SIZE

STORED, FRAMES = 8, 4
TOTALS = {"a": 80, "b": 80, "short": 3, "c": 80}
TRAIN = [Annotation(n, video, "a red circle", [], None, [[0, 1]]) for n, video in enumerate(("a", "short", "b", "a"))]
VAL = [Annotation(n, video, "a red circle", [], None, [[0, 1]]) for n, video in enumerate(("c", "b"))]


def make_video(video, seed=0):
    """Return a record with frames of noise, which depend on id and seed."""
    count, total = min(STORED, TOTALS[video]), TOTALS[video]
    noise = np.random.default_rng((ord(video[0]), seed)).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    indices = np.arange(count, dtype=np.int32) * (total // count)
    return VideoRecord(video, total, 10.0, 8.0, indices, indices.astype(np.float32) / 10, encode_jpeg(noise), [])


def frame_keys_of(video, seed=0):
    """Return the keys of the frames of a video that the model reads."""
    record = make_video(video, seed)
    step = len(record.jpegs) // min(FRAMES, len(record.jpegs))
    return FrameKeys(video, record.indices[::step].tolist(), checksums(record.jpegs[::step]))


def with_features(base, features):
    return replace(base.config, data=replace(base.config.data, features=str(features)))


def extract(base, out, store="float32", splits=(), **more):
    return extract_features(base, VideoDataset(base.config.data.directory, splits), out, storage_dtype=store, **more)


def batches(base, config, split="train", workers=0):
    inputs = replace(input_config(config, split, base.model_config, training=False), num_workers=workers)
    return list(make_iterator(inputs, base.tokenizers.t5, base.tokenizers.bert))


@partial(jax.jit, static_argnames=("graph", "config"))
def loss_and_gradients(graph, config, weights, vision_features, batch):
    """Return the mean loss of a batch with these vision features, and its gradients."""
    trainable, frozen = weights

    def loss(trainable):
        model = nnx.merge(graph, trainable, frozen)
        selection = model.select(vision_features, batch, config.selection)
        return model.loss(vision_features, batch, selection, config.buckets[-1]).mean()

    return jax.value_and_grad(loss)(trainable)


def loss_gradient_vector(base, config):
    """Return loss and gradients of the first batch of a run, as one vector."""
    batch = batches(base, config)[0]
    see = jax.jit(lambda batch, *weights: load_or_encode(nnx.merge(base.graph, *weights), batch))
    vision_features = see(batch, base.trainable, base.frozen)
    made = loss_and_gradients(
        base.graph, step_config(base.config, 8), (base.trainable, base.frozen), vision_features, batch.without_frames()
    )
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(made)])
