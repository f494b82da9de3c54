#include "target_avx512.h"

#include "recurrent_sequence.inc"
