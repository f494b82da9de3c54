#include "conv2d.inc"
#include "target_avx2.h"
