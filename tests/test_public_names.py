"""What the package promises by name is there."""

import importlib

import pytest

import dh_keras


@pytest.mark.parametrize("name", dh_keras.__all__)
def test_a_public_name_is_the_object_of_its_own_module(name):
    public = getattr(dh_keras, name)
    assert public is getattr(importlib.import_module(public.__module__), name)


def test_another_name_is_refused_with_a_list_of_the_public_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Detecter'; public names: .*Detector"):
        _ = dh_keras.Detecter
