#pragma once

#include "../../kernels/panels.h"

namespace d2lfast::ops {

// The kernels of the instruction set in use.
const PanelKernels& panel_product_kernels();

}  // namespace d2lfast::ops
