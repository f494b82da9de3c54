#include "target_avx512.h"

#include "cross_entropy.inc"
