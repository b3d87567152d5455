"""The evaluation of a run."""

from calce_jax.config import packaged_path
from calce_jax.inference.predict_split import DatasetSplit
from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.presets.runs import get_preset
from calce_jax.text.tokenizers import load_t5
from calce_jax.training import run_data


def test_validation_scores_by_the_originals_protocol(monkeypatch):
    scores = {"reference": {"R1_avg": 1.0, "rank": "given"}, "official": {"R1_avg": 2.0}}
    monkeypatch.setattr(run_data, "predict_answers", lambda *_: [])
    monkeypatch.setattr(run_data, "evaluate_cases", lambda cases: scores)
    dataset = MomentDataset.__new__(MomentDataset)
    dataset._length = 0
    split = DatasetSplit(dataset, [], lambda first_batch: [])
    t5 = load_t5(packaged_path("calce_jax/assets/tiny/t5"))
    evaluation = run_data.evaluate_split(get_preset("shapes,stage=1"), split, t5, lambda batches: iter(()))
    assert evaluation.metrics == {"R1_avg": 1.0}
