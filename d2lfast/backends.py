"""What the algorithm tables may choose, in the manner of `torch.backends`.

d2lfast.backends.conv2d.allow_winograd = False
d2lfast.backends.conv2d.autotune = True
with d2lfast.backends.conv2d.flags(allow_winograd=False): ...
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from d2lfast import _extension, _tuning

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

    @property
    def cache_filters(self) -> bool:
        """Whether inference keeps the filters that Winograd's algorithm transforms; False at first.

        Layers of few images then skip the transform, from the second call of each weight on. Up to 512 MiB
        are kept, four times the size of a 3x3 weight for each; False frees them. They are made anew when the
        weight was written to, as its version counter tells, or has another storage, and are freed by the next
        convolution when the weight is gone. The counter does not see writes through `weight.data`,
        `weight.numpy()` or from C: set this only where weights are not written in these ways, or set it to
        False and True again behind such a write. Only calls under `torch.no_grad` or `torch.inference_mode`
        keep anything, and not of weights that were made under `torch.inference_mode`.
        """
        kept: bool = _extension.load().filters_are_kept()
        return kept

    @cache_filters.setter
    def cache_filters(self, keep: bool) -> None:
        _extension.load().keep_filters_of_inference(bool(keep))

    @property
    def autotune(self) -> bool:
        """Whether convolutions measure their algorithms instead of asking the table.

        False at first, or what D2LFAST_AUTOTUNE says. The first call of each pass with new sizes times every
        algorithm that computes it, which takes some twenty calls; later calls take the fastest, which may
        round otherwise than the table's choice. On a GPU the measured call waits for the device; while a CUDA
        graph is captured nothing is measured, so run a step before. The findings are kept in the user's cache
        folder, for this processor or model of GPU, torch and d2lfast (docs/environment.md). Choices made by
        name (`d2lfast.conv2d_algorithm`) stand. `d2lfast.explain` marks what was measured with "(autotuned)".
        """
        enabled: bool = _extension.load().tuning_enabled()
        return enabled

    @autotune.setter
    def autotune(self, enabled: bool) -> None:
        _tuning.enable(bool(enabled))

    @contextmanager
    def flags(
        self,
        allow_winograd: bool | None = None,
        autotune: bool | None = None,
        cache_filters: bool | None = None,
    ) -> Iterator[None]:
        """Set switches inside a `with` block; None leaves one as it is."""
        before = self.allow_winograd, self.autotune, self.cache_filters
        try:
            if allow_winograd is not None:
                self.allow_winograd = allow_winograd
            if autotune is not None:
                self.autotune = autotune
            if cache_filters is not None:
                self.cache_filters = cache_filters
            yield
        finally:
            self.allow_winograd, self.autotune, self.cache_filters = before


conv2d = _Conv2d()
if os.environ.get("D2LFAST_AUTOTUNE", "") not in ("", "0"):
    conv2d.autotune = True
