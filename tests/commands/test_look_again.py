"""--look_again of `calce infer`."""

from calce_jax.inference import look_again, predict_split, trained_run
from tests.helpers.commands import run_script


def test_infer_looks_as_often_as_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_run, "load_trained_model", lambda workdir, **options: "model")
    calls = []
    monkeypatch.setattr(predict_split, "predict_split", lambda *arguments: calls.append((1, *arguments[:3])) or [])
    monkeypatch.setattr(look_again, "predict_split_twice", lambda *arguments: calls.append((2, *arguments[:3])) or [])
    inputs = (f"--workdir={tmp_path}", "--split=val", f"--out={tmp_path}/out.jsonl", "--data=prepared")
    for flags in ((), ("--look_again",), ("--nolook_again",)):
        run_script("infer", *inputs, *flags)
    assert calls == [(looks, "model", "val", f"{tmp_path}/out.jsonl") for looks in (1, 2, 1)]
