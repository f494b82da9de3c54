#include "target_avx512.h"

#include "pool2d_max_gradient.inc"
