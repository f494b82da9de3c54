"""Cross-entropy with class numbers: image classes, characters, and a vocabulary of words."""

from typing import Any

from torch.nn import functional as native_functional

from d2lfast.bench.case import Case, Maker, Reductions, Work
from d2lfast.nn import functional as our_functional


def _maker(functional: Any, classes: int) -> Maker:
    # Class numbers from the buffer, which is uniform in [0.5, 1.5): the same in every dtype.
    def make(parameters, buffers):
        target = ((buffers[0].double() - 0.5) * classes).long().clamp_(max=classes - 1)
        return lambda logits: functional.cross_entropy(logits, target)

    return make


def loss_case(rows: int, classes: int) -> Case:
    """The mean loss. A logit costs a comparison, a subtraction, an exponential and an addition each way.

    Bytes beside the logits, for each row: the class number, and both ways two float32 statistics.
    """
    logits = rows * classes
    return Case(
        name=f"loss/{rows}-{classes}",
        family="loss",
        operator="_cross_entropy",
        inputs=((rows, classes),),
        buffers=((rows,),),
        native=_maker(native_functional, classes),
        ours=_maker(our_functional, classes),
        forward=Work(4 * logits, logits, 8 * rows),
        both=Work(8 * logits, 3 * logits, 32 * rows),
        reductions=Reductions(output=logits, grad_input=classes),
    )


CASES = [loss_case(*size) for size in ((256, 10), (32768, 28), (1152, 200), (700, 10000))]
