"""Words by which two sentences are compared."""

import pytest

from calce_jax.text.content_words import content_words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A man walks.", "The men were WALKING"),
        ("A dog runs by", "dogs running"),
        ("They are baking cakes", "He bakes a cake!"),
        ("a stopped car", "the car stops"),
    ],
)
def test_inflected_words_are_equal(one, other):
    assert content_words(one) & content_words(other)


def test_words_without_content_are_left_out():
    assert content_words("We can see her, and it's there again.") == set()
    assert content_words("") == set()
    assert content_words("A red circle moves to the left.") == {"red", "circl", "mov", "left"}


def test_short_words_keep_their_endings():
    """Otherwise "bed" and "bus" would be "b"."""
    assert content_words("bed bus red") == {"bed", "bus", "red"}
