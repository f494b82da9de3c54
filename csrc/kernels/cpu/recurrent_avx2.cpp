#include "target_avx2.h"

#include "recurrent.inc"
