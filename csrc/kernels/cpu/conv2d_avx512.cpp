#include "conv2d.inc"
#include "target_avx512.h"
