#include "target_avx512.h"

#include "panel_product.inc"
