"""What a run reads in training, and in evaluation."""

from dataclasses import replace

from calce_jax.input_pipeline.input_config import input_config
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.presets.runs import get_preset

SIZES = CalceConfig.tiny(64, 64)


def test_training_is_shuffled_repeated_and_augmented_and_drops_the_last_short_batch():
    run = replace(get_preset("qvhighlights,stage=1"), seed=7)
    config = input_config(run, "train", SIZES, training=True)
    assert (config.shuffle, config.augment, config.remainder, config.num_epochs) == (True, True, "drop", None)
    assert (config.seed, config.num_workers, config.batch_size, config.split) == (7, run.data.workers, 4, "train")
    calm = replace(run, data=replace(run.data, augment=False))
    assert not input_config(calm, "train", SIZES, training=True).augment


def test_evaluation_reads_every_query_once_in_order():
    run = get_preset("qvhighlights,stage=1")
    config = input_config(replace(run, data=replace(run.data, eval_batch=3)), "val", SIZES, training=False)
    assert (config.shuffle, config.augment, config.remainder, config.num_epochs) == (False, False, "fill", 1)
    assert (config.num_workers, config.batch_size, config.split) == (0, 3, "val")


def test_a_batch_has_several_blocks_of_captions_and_text_for_them():
    run = get_preset("qvhighlights,stage=2")
    config = input_config(run, "val", SIZES, training=False)
    assert (config.max_captions, config.text_tokens) == (8 * 64, 8 * run.text.text_tokens)
    silent = input_config(replace(run, data=replace(run.data, use_captions=False)), "val", SIZES, training=False)
    assert (silent.max_captions, silent.text_tokens) == (64, run.text.text_tokens)
    charades = input_config(get_preset("charades_sta,stage=1"), "test", SIZES, training=False)
    assert charades.max_captions == 1
