#include "target_avx2.h"

#include "batch_norm.inc"
