"""Each layer stands in somebody else's functional model as its docstring shows."""

import doctest
import inspect

import keras
import pytest

import dh_keras.modeling.layers as layers

CLASSES = {name: value for name in layers.__all__ if inspect.isclass(value := getattr(layers, name))}


@pytest.mark.parametrize("name", CLASSES)
def test_the_example_of_a_layer_builds_a_functional_model(name):
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    (example,) = finder.find(CLASSES[name], name, globs={"keras": keras, **CLASSES})
    assert any("keras.Model(" in step.source for step in example.examples)
    assert runner.run(example).failed == 0
