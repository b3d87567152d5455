"""Changes that earlier versions of the tests did not notice; each stands for a rule that the tests must hold."""

from tests.mutants.mutant import Mutant

STEP, RUN = "calce_jax/training/train_step.py", "calce_jax/training/run.py"
CALCE, T5, FINE = "calce_jax/models/calce.py", "calce_jax/models/t5.py", "calce_jax/models/keyframes/fine.py"
BEAMS, LAYERS = "calce_jax/models/beam_search.py", "calce_jax/models/layers.py"
BATCHES, RESTORE = "calce_jax/input_pipeline/batches.py", "calce_jax/checkpoints/restore.py"
PROTOCOLS, PRESETS = "calce_jax/moments/metrics/protocols.py", "calce_jax/presets/datasets.py"

NAMED = (
    Mutant(STEP, "jax.random.fold_in(key, state.step)", "key", "dropout is the same at every step"),
    Mutant(
        STEP,
        "jnp.maximum(batch.row_mask.sum(), 1)",
        "jnp.maximum(batch.row_mask.size, 1)",
        "filler rows in the mean loss",
    ),
    Mutant(
        CALCE,
        "self.t5.encode(x, mask, key=keys(), remat",
        "self.t5.encode(x, mask, key=None, remat",
        "no dropout in the encoder",
    ),
    Mutant(T5, "dropout_key=keys(),", "dropout_key=None,", "no dropout on attention weights"),
    Mutant(RUN, "jax.random.key(config.seed)", "jax.random.key(0)", "dropout ignores the seed"),
    Mutant(
        RESTORE,
        "model = Calce(model_config, rngs=nnx.Rngs(config.seed))",
        "model = Calce(model_config, rngs=nnx.Rngs(0))",
        "adapters ignore the seed",
    ),
    Mutant(BATCHES, "augment=training and config.data.augment", "augment=False", "no augmentation"),
    Mutant(BATCHES, "shuffle=training", "shuffle=False", "no shuffling"),
    Mutant(
        BATCHES,
        'remainder="drop" if training else "fill"',
        'remainder="fill"',
        "the last short batch is filled in training",
    ),
    Mutant(BATCHES, "seed=config.seed,", "seed=0,", "the order ignores the seed"),
    Mutant(
        RESTORE,
        'step = best[0] if best and checkpoint == "best" else',
        "step = None or",
        "a stage starts from the latest checkpoint",
    ),
    Mutant(
        "calce_jax/checkpoints/convert/sources.py",
        "checkpoints.best_step_and_metric[0] if checkpoints.best_step_and_metric else checkpoints.latest_step",
        "checkpoints.latest_step",
        "convert takes the latest checkpoint",
    ),
    Mutant(FINE, "MAX_ELECTED_CLUSTERS = 8", "MAX_ELECTED_CLUSTERS = 7", "seven elected clusters"),
    Mutant(
        FINE,
        "(frame >= start) & (frame < end)",
        "(frame > start) & (frame < end)",
        "a window's first frame is left out",
    ),
    Mutant(
        CALCE,
        "self.ln_vision(tokens).astype(jnp.float32).mean(axis=2)",
        "tokens.astype(jnp.float32).mean(axis=2)",
        "means without ln_vision",
    ),
    Mutant(
        CALCE,
        "self.ln_vision(tokens).astype(jnp.float32).mean(axis=2)",
        "self.ln_vision(tokens).astype(jnp.float32)[:, :, 1:].mean(axis=2)",
        "means without the class token",
    ),
    Mutant(
        CALCE,
        "normalised = queries / jnp.maximum(jnp.linalg.norm(queries, axis=-1, keepdims=True), 1e-12)",
        "normalised = queries",
        "stage 2's features keep their norm",
    ),
    Mutant(PROTOCOLS, "np.mean(ious >= threshold)", "np.mean(ious > threshold)", "R1 above and not at the threshold"),
    Mutant(
        "calce_jax/moments/metrics/average_precision.py",
        "window_ious >= IOU",
        "window_ious > IOU",
        "AP above and not at the threshold",
    ),
    Mutant(
        PROTOCOLS,
        "min_length < window[1] - window[0] <= max",
        "min_length <= window[1] - window[0] <= max",
        "lower edge of a range of lengths",
    ),
    Mutant(
        PROTOCOLS,
        "min_length < window[1] - window[0] <= max",
        "min_length < window[1] - window[0] < max",
        "upper edge of a range of lengths",
    ),
    Mutant(
        "calce_jax/text/captions.py",
        "MIN_ENGLISH_FRACTION = 0.8",
        "MIN_ENGLISH_FRACTION = 0.5",
        "share of English in captions",
    ),
    Mutant(
        "calce_jax/input_pipeline/rows.py",
        "speech_intervals(raw_captions, behaviour)",
        "speech_intervals(clean_captions(raw_captions), behaviour)",
        "speech from cleaned captions",
    ),
    Mutant(
        "calce_jax/text/prompt.py", "SINGLE_TOKEN_LIMIT = 200", "SINGLE_TOKEN_LIMIT = 150", "single tokens below 150"
    ),
    Mutant(
        BEAMS,
        "is_eos & (jnp.arange(2 * num_beams) < num_beams)[None] &",
        "is_eos &",
        "beams may end among all 2 K candidates",
    ),
    Mutant(
        BEAMS,
        "value[:, 0] / (length + extra_length)",
        "value[:, -1] / (length + extra_length)",
        "the search ends by its worst beam",
    ),
    Mutant(CALCE, "max_captions: int = 5", "max_captions: int = 3", "three captions"),
    Mutant(CALCE, "min_similarity: float = 0.9", "min_similarity: float = 0.5", "captions of cosine 0.5"),
    Mutant(PRESETS, "            captions=64,", "            captions=32,", "QVHighlights: 32 captions"),
    Mutant(
        "calce_jax/presets/sizes.py",
        '"full": ModelConfig(size="full", frozen_dtype="bfloat16", compute_dtype="bfloat16"',
        '"full": ModelConfig(size="full", frozen_dtype="bfloat16", compute_dtype="float32"',
        "the full size computes in float32",
    ),
    Mutant("calce_jax/training/run_data.py", '["reference"]', '["official"]', "validation by the official protocol"),
    Mutant(
        CALCE,
        "frames.reshape(-1, *frames.shape[2:]), jnp.dtype(self.config.dtype))",
        "frames.reshape(-1, *frames.shape[2:]))",
        "frames stay float32",
    ),
    Mutant(
        "calce_jax/models/vit.py",
        "scaled = frames.astype(jnp.float32) / 255.0",
        "scaled = frames.astype(dtype).astype(jnp.float32) / 255.0",
        "pixels rounded before they are normalised",
    ),
    Mutant(
        CALCE,
        "log_softmax(logits.astype(jnp.float32), axis=-1)",
        "log_softmax(logits, axis=-1)",
        "the loss in bfloat16",
    ),
    Mutant(
        "calce_jax/models/attention.py",
        "query, key, preferred_element_type=jnp.float32) * scale",
        "query, key).astype(jnp.float32) * scale",
        "attention scores in bfloat16",
    ),
    Mutant(
        LAYERS,
        "        x_float32 = x.astype(jnp.float32)\n        centred",
        "        x_float32 = x\n        centred",
        "LayerNorm in bfloat16",
    ),
    Mutant(
        LAYERS,
        "        x_float32 = x.astype(jnp.float32)\n        normed = x_float32 *",
        "        x_float32 = x\n        normed = x_float32 *",
        "T5's norm in bfloat16",
    ),
)
