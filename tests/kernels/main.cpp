// Runs every kernel table of this processor over random shapes: `test_kernels [cases]`. Built with the
// address and undefined-behaviour sanitizers by run_sanitized.sh; knows neither torch nor Python.
#include "support.h"

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
#define D2LFAST_RUN(family)                                         \
  d2lfast::test::test_##family(cases);                              \
  std::printf("%-10s %d cases, %s and below: ok\n", #family, cases, \
              d2lfast::cpu::isa_name(d2lfast::cpu::detected_isa()))
  D2LFAST_FAMILIES(D2LFAST_RUN)
  return 0;
}
