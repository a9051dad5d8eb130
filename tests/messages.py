"""Calls that are refused, and what they say: (function, arguments and perhaps a dict of options), error, message."""

import pytest
from torchassay.checks import InputTypeError, InputValueError


def call(arguments):
    function, *arguments = arguments
    options = arguments.pop() if isinstance(arguments[-1], dict) else {}
    return function(*arguments, **options)


def check(case):
    arguments, kind, message = case
    with pytest.raises(kind) as error:
        call(arguments)
    assert str(error.value) == message
    assert type(error.value) is (InputTypeError if kind is TypeError else InputValueError)
