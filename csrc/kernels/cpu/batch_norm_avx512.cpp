#include "target_avx512.h"

#include "batch_norm.inc"
