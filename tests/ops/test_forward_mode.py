"""The operators have no forward-mode derivative, and say so where a tangent would be lost."""

import random

import pytest
import torch
from torch.autograd import forward_ad

from d2lfast.testing import OPERATORS
from d2lfast.testing.cases import Case, inputs_of


def call_of(name):
    """An operator's call, and its arguments that have a gradient."""
    operator = OPERATORS[name]
    rng = random.Random(3)
    shapes, options = operator.draw(rng)
    while isinstance(options.get("padding"), str):
        shapes, options = operator.draw(rng)
    case = Case(name, shapes, options)
    tensors = inputs_of(case)
    return (lambda: operator.overload()(*operator.arguments(tensors, options))), tensors, case.gradients()


@pytest.mark.parametrize("name", OPERATORS)
def test_a_tangent_is_refused(name):
    call, tensors, differentiable = call_of(name)
    assert differentiable
    plain = dict(tensors)
    for argument in differentiable:
        with forward_ad.dual_level():
            tensors[argument] = forward_ad.make_dual(plain[argument], torch.ones_like(plain[argument]))
            for mode in (torch.no_grad, torch.enable_grad):
                with mode(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                    call()
            tensors[argument] = plain[argument]
            call()
