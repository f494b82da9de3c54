#include "target_avx2.h"

#include "pool2d_adaptive.inc"
