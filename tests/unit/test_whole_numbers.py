"""Whole numbers as arguments: Python's and numpy's are one, and what only looks like a number is refused."""

import numpy as np
import pytest

import labkit as lk
from labkit.text.whole_numbers import whole


def test_numpys_integers_are_whole_numbers(lm32):
    assert whole("folds", np.int64(5), least=2) == 5
    assert type(whole("folds", np.uint8(5))) is int
    vector = lk.SteeringVector.of(np.ones(lm32.d_model), np.int64(3))
    assert (vector.layer, type(vector.layer)) == (3, int)
    assert lk.Noise("Mary", samples=np.int64(2), seed=np.int64(1)) == lk.Noise("Mary", samples=2, seed=1)
    said = [
        lk.patchscope(lm32, "Mary", layers=[np.int64(4)], positions=[np.int64(0)], seed=np.int64(0), max_new_tokens=1)
        for _ in range(2)
    ]
    assert repr(said[0]) == repr(said[1])


@pytest.mark.parametrize("value", [True, 2.0, "2", None, np.float32(2), -1])
def test_anything_else_is_refused_with_what_is_wanted(value):
    with pytest.raises(ValueError, match=r"batch must be a whole number of texts, at least 0; got "):
        whole("batch", value, least=0, of=" of texts")
