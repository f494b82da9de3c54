#include "conv2d_algorithm.h"

#include <c10/util/Exception.h>

namespace d2lfast::ops {

namespace {

Conv2dAlgorithm from_table(const Conv2dShape& s, Conv2dPass pass, cpu::Isa isa) {
  if (s.cuda) return Conv2dAlgorithm::kAten;
  return Conv2dAlgorithm::kDirect;
}

}  // namespace

Conv2dAlgorithm choose_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass, cpu::Isa isa,
                                        std::string_view requested) {
  if (requested == "auto") return from_table(shape, pass, isa);
  if (requested == "direct") return Conv2dAlgorithm::kDirect;
  if (requested == "aten") return Conv2dAlgorithm::kAten;
  TORCH_CHECK_VALUE(false, "algorithm must be one of 'auto', 'direct', 'aten', but got '", requested, "'");
}

const char* conv2d_algorithm_name(Conv2dAlgorithm algorithm) {
  return algorithm == Conv2dAlgorithm::kDirect ? "direct" : "aten";
}

}  // namespace d2lfast::ops
