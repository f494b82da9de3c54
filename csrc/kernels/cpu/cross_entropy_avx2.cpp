#include "target_avx2.h"

#include "cross_entropy.inc"
