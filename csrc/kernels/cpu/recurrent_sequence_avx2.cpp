#include "target_avx2.h"

#include "recurrent_sequence.inc"
