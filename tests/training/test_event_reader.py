"""Scalars are read back as TensorBoard shows them."""

import pytest

from calce_jax.training.event_reader import read_scalars
from calce_jax.training.metric_writer import TensorBoardWriter


def write(folder, points, purge_step=None):
    writer = TensorBoardWriter(folder, purge_step)
    for step, value in points:
        writer.write_scalars(step, {"Loss/train": value, "eval/R1@0.5": 100 * value})
    writer.close()


def test_scalars_are_read_by_name_and_step(tmp_path):
    write(tmp_path, [(1, 0.5), (3, 0.25)])
    writer = TensorBoardWriter(tmp_path)
    writer.write_texts(0, {"config": "no number"})
    writer.close()
    assert read_scalars(tmp_path) == {"Loss/train": {1: 0.5, 3: 0.25}, "eval/R1@0.5": {1: 50.0, 3: 25.0}}


def test_what_a_resumed_run_did_again_is_there_once(tmp_path):
    write(tmp_path, [(1, 0.5), (2, 0.25), (3, 9.0), (4, 9.0)])
    write(tmp_path, [(3, 0.125)], purge_step=3)
    assert read_scalars(tmp_path)["Loss/train"] == {1: 0.5, 2: 0.25, 3: 0.125}


@pytest.mark.parametrize("lost", [1, 5, 20])
def test_a_record_that_was_not_finished_is_left_out(tmp_path, lost):
    write(tmp_path, [(1, 0.5), (2, 0.25)])
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-lost])
    assert read_scalars(tmp_path)["Loss/train"] == {1: 0.5}


def test_a_damaged_record_ends_its_file(tmp_path):
    write(tmp_path, [(1, 0.5)])
    (file,) = tmp_path.glob("events*")
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        # What is read is right, or not there.
        assert read_scalars(tmp_path).get("Loss/train", {1: 0.5}) == {1: 0.5}
    file.write_bytes(whole[:-10] + whole)
    assert read_scalars(tmp_path).get("Loss/train", {1: 0.5}) == {1: 0.5}


def test_a_folder_without_events_has_no_scalars(tmp_path):
    assert read_scalars(tmp_path) == {}
    assert read_scalars(tmp_path / "none") == {}
