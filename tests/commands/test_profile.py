"""--profile of `calce train` and `calce infer`."""

import pytest

from calce_jax.inference import predict_split, trained_run
from calce_jax.training import run, run_data
from tests.helpers.commands import run_script


def test_train_hands_on_the_number_of_steps(tmp_path, monkeypatch):
    options = []
    monkeypatch.setattr(run_data, "open_run_data", lambda config: "data")
    monkeypatch.setattr(run, "train_run", lambda config, workdir, data, **rest: options.append((workdir, data, rest)))
    for flags, steps in (((), 0), (("--profile=5",), 5)):
        run_script("train", "--config=shapes,stage=1", f"--workdir={tmp_path}", *flags)
        assert options.pop() == (tmp_path, "data", {"stop_on_signals": True, "profile_steps": steps})


def test_infer_traces_to_the_workdir(tmp_path, monkeypatch):
    profilers = []
    monkeypatch.setattr(trained_run, "load_trained_model", lambda workdir, **options: "model")

    def predict(model, split, out, profiler):
        profilers.append(profiler)
        return []

    monkeypatch.setattr(predict_split, "predict_split", predict)
    inputs = (f"--workdir={tmp_path}", "--split=val", f"--out={tmp_path}/out.jsonl", "--data=prepared")
    run_script("infer", *inputs, "--profile=2")
    (profiler,) = profilers
    with profiler:
        list(profiler.watch(range(5)))
    assert len(list((tmp_path / "profile/plugins/profile").rglob("*.xplane.pb"))) == 1
    with pytest.raises(SystemExit):
        run_script("infer", *inputs, "--profile=-1")
