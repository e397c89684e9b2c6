"""Sampling: numbers drawn, order, seeds and distribution."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.ops.sampling import image_seeds, sample_balanced


def sample(foreground, background, *, seeds=None, size=8, foreground_fraction=0.5):
    foreground, background = np.atleast_2d(foreground), np.atleast_2d(background)
    seeds = [[7, image] for image in range(len(foreground))] if seeds is None else seeds
    indices, is_foreground, valid = sample_balanced(
        tf.constant(foreground, tf.bool),
        tf.constant(background, tf.bool),
        tf.constant(seeds, tf.int64),
        size=size,
        foreground_fraction=foreground_fraction,
    )
    assert indices.dtype == tf.int64
    return indices.numpy(), is_foreground.numpy(), valid.numpy()


def candidates(count, foreground, background):
    """Masks of count candidates, the first ones foreground, the last ones background."""
    return np.arange(count) < foreground, np.arange(count) >= count - background


@pytest.mark.parametrize(
    ("foreground", "background", "drawn_foreground", "drawn_background"),
    [
        (30, 30, 4, 4),  # half and half
        (2, 30, 2, 6),  # background fills up
        (0, 30, 0, 8),
        (30, 2, 4, 2),  # foreground stays at its share
        (30, 0, 4, 0),
        (1, 1, 1, 1),
        (0, 0, 0, 0),
    ],
)
def test_foreground_takes_at_most_its_share_and_background_fills_up(
    foreground, background, drawn_foreground, drawn_background
):
    masks = candidates(70, foreground, background)
    (indices,), (is_foreground,), (valid,) = sample(*masks)
    drawn = drawn_foreground + drawn_background
    assert indices.shape == (8,)
    np.testing.assert_array_equal(valid, np.arange(8) < drawn)
    np.testing.assert_array_equal(is_foreground, np.arange(8) < drawn_foreground)
    assert masks[0][indices[:drawn_foreground]].all()
    assert masks[1][indices[drawn_foreground:drawn]].all()
    assert len(set(indices[:drawn])) == drawn


def test_images_of_a_batch_have_their_own_numbers():
    masks = [candidates(20, foreground, background) for foreground, background in [(9, 9), (0, 3), (1, 19)]]
    _, is_foreground, valid = sample([m[0] for m in masks], [m[1] for m in masks])
    assert is_foreground.sum(axis=1).tolist() == [4, 0, 1]
    assert valid.sum(axis=1).tolist() == [8, 3, 8]


def test_the_share_of_foreground_is_rounded_down():
    (_,), (is_foreground,), _ = sample(*candidates(40, 20, 20), size=10, foreground_fraction=0.25)
    assert is_foreground.sum() == 2
    # 0.7 * 10 is a little below 7 in binary.
    (_,), (is_foreground,), _ = sample(*candidates(40, 20, 20), size=10, foreground_fraction=0.7)
    assert is_foreground.sum() == 7


def test_fewer_boxes_than_the_size_shorten_the_row():
    indices, is_foreground, valid = sample(*candidates(5, 2, 3))
    assert indices.shape == (1, 5)
    assert sorted(indices[0]) == [0, 1, 2, 3, 4]
    assert is_foreground.tolist() == [[True, True, False, False, False]]
    assert valid.all()


def test_a_huge_size_takes_every_candidate():
    masks = candidates(50, 20, 25)
    (indices,), (is_foreground,), (valid,) = sample(*masks, size=1_000_000, foreground_fraction=1.0)
    assert sorted(indices[is_foreground]) == list(range(20))
    assert sorted(indices[valid & ~is_foreground]) == list(range(25, 50))
    assert valid.sum() == 45


def test_no_boxes_give_an_empty_row():
    indices, is_foreground, valid = sample(np.zeros([2, 0]), np.zeros([2, 0]))
    assert indices.shape == is_foreground.shape == valid.shape == (2, 0)


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    masks = candidates(200, 100, 100)
    first, again, other_image, other_step = (
        sample(*masks, seeds=[seed])[0][0].tolist() for seed in ([7, 1], [7, 1], [7, 2], [8, 1])
    )
    assert first == again
    assert first != other_image
    assert first != other_step


def test_a_draw_does_not_depend_on_place_and_company_in_the_batch():
    generator = np.random.default_rng(4)
    foreground = generator.uniform(size=(3, 60)) < 0.3
    background = ~foreground & (generator.uniform(size=(3, 60)) < 0.8)
    seeds = np.array([[5, 11], [5, 12], [5, 13]])
    together = sample(foreground, background, seeds=seeds)
    for position in range(3):
        alone = sample(foreground[position], background[position], seeds=seeds[position : position + 1])
        for one, all_ in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_[position])
    order = [2, 0, 1]
    for one, all_ in zip(sample(foreground[order], background[order], seeds=seeds[order]), together, strict=True):
        np.testing.assert_array_equal(one, all_[order])


def test_every_candidate_is_equally_likely():
    draws, count = 600, 12
    masks = candidates(2 * count, count, count)
    seeds = image_seeds(3, tf.constant(0), tf.range(draws, dtype=tf.int64)).numpy()
    indices, _, valid = sample(*(np.tile(mask, (draws, 1)) for mask in masks), seeds=seeds, size=6)
    assert valid.all()
    observed = np.bincount(indices.ravel(), minlength=2 * count)
    expected = draws * 3 / count  # 3 of 12 foreground and 3 of 12 background
    # Without replacement the statistic is below that of a multinomial; 45 is beyond the 99.7th percentile of chi2(22).
    assert ((observed - expected) ** 2 / expected).sum() < 45
    pairs = np.zeros([count, count])
    for row in indices[:, :3]:
        pairs[np.ix_(row, row)] += 1
    pairs = pairs[np.triu_indices(count, 1)]  # 66 pairs, 600 * 3 / 66 = 27.3 each
    assert ((pairs - draws * 3 / 66) ** 2 / (draws * 3 / 66)).sum() < 110


def test_seeds_differ_by_run_step_and_image():
    ids = tf.constant([4, 9_000_000_000], tf.int64)
    seeds = image_seeds(2, tf.constant(5), ids).numpy()
    assert seeds.shape == (2, 2)
    assert seeds.dtype == np.int64
    np.testing.assert_array_equal(seeds[:, 1], ids)
    rows = {tuple(row) for run in (0, 1, 2) for step in (0, 1, 180_000) for row in image_seeds(run, step, ids).numpy()}
    assert len(rows) == 3 * 3 * 2


def test_draws_of_a_step_have_seeds_that_no_draw_of_another_step_or_image_has():
    ids = tf.range(-3, 4, dtype=tf.int64)
    seeds = [image_seeds(run, step, ids, draw=draw).numpy() for run in (0, 1) for step in range(4) for draw in range(4)]
    assert len({tuple(row) for rows in seeds for row in rows}) == 2 * 4 * 4 * len(ids)
    np.testing.assert_array_equal(seeds[0], image_seeds(0, 0, ids))
