"""The page on the detector as a Keras model: its code runs from top to bottom."""

import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture
def without_graphs():
    """Tracing takes longer than the few steps of this page."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("without_graphs")
def test_the_code_of_the_page_runs_with_a_smaller_model(tmp_path, tiny_overrides, monkeypatch, python_blocks):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(python_blocks("keras.md"))
    assert code.count('load_config("shapes_tiny")') == 1
    names = {}
    exec(code.replace('load_config("shapes_tiny")', f"load_config(overrides={[*tiny_overrides]!r})"), names)
    history = names["history"].history
    assert len(history["loss"]) == len(history["val_loss"]) == 2
    assert history["loss"][1] < history["loss"][0]
    assert history.keys() & {"data_wait", "previous_gradient_norm", "total_loss"} == set()
    for name, values in names["same"].predict(names["images"], batch_size=2, verbose=0).items():
        np.testing.assert_allclose(names["found"][name], values, rtol=1e-4, atol=1e-3, err_msg=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.keras", "detector.keras", "exported"]
    assert np.array_equal(names["smaller"].fpn.outputs[0].kernel, names["model"].fpn.outputs[0].kernel)
    assert names["other"].fpn.laterals[3].kernel.shape[2] == 32
    assert names["head"].output.shape[1:] == (14, 14, 32)
