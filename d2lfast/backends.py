"""What the algorithm tables may choose, in the manner of `torch.backends`.

d2lfast.backends.conv2d.allow_winograd = False
with d2lfast.backends.conv2d.flags(allow_winograd=False): ...
"""

from collections.abc import Iterator
from contextlib import contextmanager

from d2lfast import _extension

__all__ = ["conv2d"]


class _Conv2d:
    """Switches of convolution; they hold for the whole process."""

    @property
    def allow_winograd(self) -> bool:
        """Whether dense 3x3 float32 convolutions may use Winograd's F(4x4, 3x3); True at first.

        Its relative error is about five times that of a plain sum (docs/performance.md, "Numerics of the
        algorithms"). The value at the time of a pass counts: backward asks again.
        `d2lfast.conv2d_algorithm("winograd")` asks for the algorithm by name and is not affected.
        """
        allowed: bool = _extension.load().winograd_allowed()
        return allowed

    @allow_winograd.setter
    def allow_winograd(self, allowed: bool) -> None:
        _extension.load().allow_winograd(bool(allowed))

    @contextmanager
    def flags(self, allow_winograd: bool = True) -> Iterator[None]:
        """Set the switches inside a `with` block."""
        before = self.allow_winograd
        self.allow_winograd = allow_winograd
        try:
            yield
        finally:
            self.allow_winograd = before


conv2d = _Conv2d()
