"""Means, correlations and groups against NumPy's own and against cases made by hand."""

import numpy as np
import pytest

from dh_keras.reports.heads.statistics import (
    MeanCorrelation,
    bin_statistics,
    cell_correlations,
    describe_correlation,
    finite_mean,
    mean_and_error,
    pearson_by_object,
    size_masks,
)


def test_bins_of_a_case_made_by_hand():
    count, mean, std = bin_statistics([0.0, 0.24, 0.25, 0.8, 1.0], [1.0, 3.0, 7.0, 2.0, 2.0], bins=4)
    assert count.tolist() == [2, 1, 0, 2]
    np.testing.assert_allclose(mean, [2.0, 7.0, np.nan, 2.0])
    np.testing.assert_allclose(std, [1.0, 0.0, np.nan, 0.0])


def test_bins_equal_numpy():
    random = np.random.default_rng(0)
    ious, values = random.uniform(0, 1, 500).astype(np.float32), random.normal(5, 2, 500).astype(np.float32)
    count, mean, std = bin_statistics(ious, values, bins=20)
    for index in range(20):
        inside = values[(ious >= index / 20) & (ious < (index + 1) / 20)]
        assert count[index] == len(inside) > 0
        np.testing.assert_allclose([mean[index], std[index]], [inside.mean(), inside.std()], rtol=1e-5)


def test_pearson_of_each_object_equals_numpy():
    random = np.random.default_rng(1)
    object_index = random.permutation(np.repeat([0, 1, 3], [40, 7, 90]))
    ious = random.uniform(0, 1, len(object_index)).astype(np.float32)
    scores = (ious**2 + random.normal(0, 0.2, len(ious))).astype(np.float32)
    found = pearson_by_object(ious, scores, object_index, num_objects=5)
    for number in (0, 1, 3):
        mine = object_index == number
        np.testing.assert_allclose(found[number], np.corrcoef(ious[mine], scores[mine])[0, 1], rtol=1e-5)
    assert np.isnan(found[[2, 4]]).all()


def test_an_object_whose_score_never_varies_has_no_correlation():
    ious = np.array([0.1, 0.5, 0.9, 0.1, 0.5, 0.9, 0.3, 0.3, 0.7], np.float32)
    scores = np.array([0.3, 0.3, 0.3, 0.9, 0.6, 0.3, 0.1, 0.9, 1.0], np.float32)
    found = pearson_by_object(ious, scores, np.repeat([0, 1, 2, 3], [3, 3, 2, 1]), num_objects=4)
    np.testing.assert_allclose(found, [np.nan, -1.0, np.nan, np.nan], atol=1e-6)


def test_sizes_are_those_of_coco():
    masks = size_masks(np.array([1.0, 1023.9, 1024.0, 9215.0, 9216.0]))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "all": [True] * 5,
        "small": [True, True, False, False, False],
        "medium": [False, False, True, True, False],
        "large": [False, False, False, False, True],
    }


def test_cell_correlations_equal_a_direct_loop():
    vectors = np.random.default_rng(2).normal(3, 1, (2, 9, 12)).astype(np.float32)
    vectors[:, 4] += vectors[:, 0]
    found = cell_correlations(vectors)
    for one, matrix in zip(vectors, found, strict=True):
        for i in range(9):
            for j in range(9):
                np.testing.assert_allclose(matrix[i, j], np.corrcoef(one[i], one[j])[0, 1], atol=1e-6)


def test_a_cell_of_equal_channels_does_not_count():
    vectors = np.random.default_rng(3).normal(0, 1, (3, 4, 6))
    vectors[0, 1] = 2.0
    mean = MeanCorrelation(4)
    mean.add(vectors[:1])
    assert np.isnan(mean.mean()[1]).all()
    mean.add(vectors[1:])
    matrices = np.array([np.corrcoef(one) for one in vectors[1:]])
    np.testing.assert_allclose(mean.mean()[1], matrices[:, 1].mean(axis=0), atol=1e-12)
    first = np.delete(np.corrcoef(vectors[0][[0, 2, 3]])[0], 0)
    np.testing.assert_allclose(mean.mean()[0, 2:], (first + matrices[:, 0, 2:].sum(axis=0)) / 3, atol=1e-12)


def test_pairs_and_neighbours_of_a_map_of_four_cells():
    matrix = np.array([[1.0, 0.4, 0.2, 0.0], [0.4, 1.0, 0.1, 0.6], [0.2, 0.1, 1.0, 0.8], [0.0, 0.6, 0.8, 1.0]])
    found = describe_correlation(matrix)
    assert found["all_pairs"] == pytest.approx((0.4 + 0.2 + 0.0 + 0.1 + 0.6 + 0.8) / 6)
    assert found["neighbours"] == pytest.approx((0.4 + 0.2 + 0.6 + 0.8) / 4)


def test_nothing_has_no_mean():
    assert finite_mean(np.array([np.nan])) is None
    assert finite_mean(np.array([np.nan, 2.0, 4.0])) == 3.0


def test_mean_and_its_error():
    assert mean_and_error(np.array([1.0, np.nan, 3.0])) == {"mean": 2.0, "standard_error": pytest.approx(1.0)}
    assert mean_and_error(np.array([5.0, np.nan])) == {"mean": 5.0, "standard_error": None}
    assert mean_and_error(np.array([])) == {"mean": None, "standard_error": None}
