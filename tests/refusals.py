"""Calls that must be refused with our own errors, word for word."""

import pytest
from torchassay.checks import InputTypeError, InputValueError


def check(call, kind, message):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == message
    assert isinstance(error.value, (InputValueError, InputTypeError))
