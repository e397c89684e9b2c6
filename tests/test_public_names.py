"""What the package promises by name is there."""

import importlib
import pkgutil

import keras
import pytest

import dh_keras
import dh_keras.modeling.layers
import dh_keras.training


@pytest.mark.parametrize("name", dh_keras.__all__)
def test_a_public_name_is_the_object_of_its_own_module(name):
    public = getattr(dh_keras, name)
    assert public is getattr(importlib.import_module(public.__module__), name)


def test_another_name_is_refused_with_a_list_of_the_public_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Detecter'; public names: .*Detector"):
        _ = dh_keras.Detecter


def test_keras_is_told_of_every_class_that_a_saved_model_may_hold():
    announced = {f"dh_keras>{name}" for names in dh_keras._SAVED.values() for name in names}
    assert announced <= keras.saving.get_custom_objects().keys()
    for package in (dh_keras.modeling, dh_keras.modeling.layers, dh_keras.training):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    registered = keras.saving.get_custom_objects()
    ours = {name for name, value in registered.items() if name.startswith("dh_keras>") and hasattr(value, "__mro__")}
    assert ours == announced
    for module, names in dh_keras._SAVED.items():
        for name in names:
            assert registered[f"dh_keras>{name}"] is getattr(importlib.import_module(module), name)
