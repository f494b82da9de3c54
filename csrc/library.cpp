#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <array>
#include <string>

#include "generate_binding.h"
#include "kernels/cpu/isa.h"
#include "memory/cpu_allocator.h"
#include "ops/conv2d_algorithm.h"
#include "ops/conv2d_tuning.h"
#include "ops/cpu/recurrent_layer.h"
#include "ops/filter_cache.h"

// Each csrc/ops/<op>.cpp adds its schemas to this library with TORCH_LIBRARY_FRAGMENT:
// conv2d, pool2d, adaptive_pool2d, batch_norm, recurrent.
TORCH_LIBRARY(d2lfast, m) {
  m.def("_build_torch_version() -> str", [] { return std::string(TORCH_VERSION); });
}

namespace {

using d2lfast::DType;
using Pair = std::array<int64_t, 2>;
using Quad = std::array<int64_t, 4>;

// Algorithms of the forward pass, the input gradient and the weight gradient of a convolution.
std::array<std::string, 3> conv2d_algorithms(Quad input, Quad weight, Pair stride, Pair padding,
                                             Pair dilation, int64_t groups, const std::string& dtype,
                                             bool channels_last, const std::string& requested, int64_t cuda,
                                             bool tf32) {
  using namespace d2lfast::ops;
  const DType type = dtype == "float64"    ? DType::kFloat64
                     : dtype == "bfloat16" ? DType::kBFloat16
                     : dtype == "float16"  ? DType::kFloat16
                                           : DType::kFloat32;
  const Conv2dShape shape{input[0], input[1], input[2], input[3], weight[0],     weight[2], weight[3], stride,
                          padding,  dilation, groups,   type,     channels_last, cuda,      tf32};
  std::array<std::string, 3> names;
  for (const auto pass : {Conv2dPass::kForward, Conv2dPass::kGradInput, Conv2dPass::kGradWeight}) {
    std::string& name = names[static_cast<int>(pass)];
    name = conv2d_algorithm_name(choose_conv2d_algorithm(shape, pass, requested));
    const bool asked = requested_conv2d_algorithm(requested, pass) == "auto";
    if (asked && tuned_conv2d_algorithm(shape, pass)) name += " (autotuned)";
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  static PyMethodDef generate{
      "recurrent_generate",
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(d2lfast::py_recurrent_generate)),
      METH_FASTCALL, "One step of recurrent layers without autograd, or None."};
  m.add_object("recurrent_generate",
               pybind11::reinterpret_steal<pybind11::object>(PyCFunction_NewEx(&generate, nullptr, nullptr)));
  m.def("conv2d_algorithms", conv2d_algorithms);
  m.def("recurrent_schedule", d2lfast::ops::recurrent_schedule);
  m.def("winograd_allowed", d2lfast::ops::winograd_allowed);
  m.def("allow_winograd", d2lfast::ops::allow_winograd);
  m.def("filters_are_kept", d2lfast::ops::filters_are_kept);
  m.def("keep_filters_of_inference", d2lfast::ops::keep_filters_of_inference);
  m.def("tuning_enabled", d2lfast::ops::tuning_enabled);
  m.def("enable_tuning", d2lfast::ops::enable_tuning);
  m.def("add_tuning", d2lfast::ops::add_tuning);
  m.def("clear_tuning", d2lfast::ops::clear_tuning);
  m.def("on_tuning", d2lfast::ops::on_tuning);
  m.attr("tuning_fields") = d2lfast::ops::kTuningFields;
  m.def("conv2d_algorithm_names", d2lfast::ops::conv2d_algorithm_names);
  m.doc() = "Build facts of the d2lfast extension; its operators are under torch.ops.d2lfast.";
  m.def("current_isa", [] { return d2lfast::cpu::isa_name(d2lfast::cpu::current_isa()); });
  m.def("detected_isa", [] { return d2lfast::cpu::isa_name(d2lfast::cpu::detected_isa()); });
  m.def("memory_enable", d2lfast::memory::enable);
  m.def("memory_disable", d2lfast::memory::disable);
  m.def("memory_empty_cache", d2lfast::memory::empty_cache);
  m.def("memory_reset_peak", d2lfast::memory::reset_peak);
  m.def("memory_stats", d2lfast::memory::stats);
  m.def("compiler", [] { return __VERSION__; });
#ifdef _OPENMP
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
}
