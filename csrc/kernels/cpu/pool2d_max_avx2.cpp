#include "target_avx2.h"

#include "pool2d_max.inc"
