#include "target_baseline.h"

#include "pool2d_max.inc"
