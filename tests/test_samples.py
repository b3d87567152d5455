import numpy as np

from calce_jax.training.samples import BAR, EMPTY, PREDICTED, TRUE, strip


def test_frames_stand_over_the_true_and_the_predicted_windows():
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 10, 3), np.uint8)
    picture = strip(frames, 100.0, [[0, 25]], [[50, 100, 0.9], [99, 400]], shown=4)
    assert picture.shape == (4 + 2 * BAR, 40, 3)
    assert [int(picture[0, x, 0]) for x in (0, 10, 20, 30)] == [0, 6, 13, 19]
    true, predicted = picture[4 + BAR - 1], picture[4 + 2 * BAR - 1]
    assert (true[:10] == TRUE).all()
    assert (true[10:] == EMPTY).all()
    assert (predicted[:20] == EMPTY).all()
    assert (predicted[20:] == PREDICTED).all()


def test_a_window_of_no_length_is_still_seen():
    picture = strip(np.zeros((1, 4, 10, 3), np.uint8), 10, [[3, 3]], [])
    assert (picture[4 + BAR - 1] == TRUE).all(axis=-1).sum() == 1
