#pragma once

// Standard headers come first: an inline library function compiled for a newer processor could
// otherwise be the copy that the linker keeps for everybody.
#include "target_headers.h"

#define D2LFAST_ISA baseline
#define D2LFAST_VECTOR_BYTES 16
