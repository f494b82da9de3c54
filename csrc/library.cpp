#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include "kernels/cpu/isa.h"

// Each csrc/ops/<op>.cpp adds its schemas to this library with TORCH_LIBRARY_FRAGMENT:
// conv2d, pool2d, adaptive_pool2d, batch_norm, recurrent.
TORCH_LIBRARY(d2lfast, m) { m.def("_build_torch_version() -> str", [] { return std::string(TORCH_VERSION); }); }

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of the d2lfast extension; its operators are under torch.ops.d2lfast.";
  m.def("current_isa", [] { return d2lfast::cpu::isa_name(d2lfast::cpu::current_isa()); });
  m.def("detected_isa", [] { return d2lfast::cpu::isa_name(d2lfast::cpu::detected_isa()); });
  m.def("compiler", [] { return __VERSION__; });
#ifdef _OPENMP
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
}
