#include "target_avx2.h"

#include "pool2d.inc"
