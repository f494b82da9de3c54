#pragma once

namespace d2lfast::cpu {

// Instruction sets a kernel body is compiled for. The baseline is x86-64 (SSE2), or plain vector
// extensions on other processors.
enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set of this processor, capped by D2LFAST_CPU_ISA and ATEN_CPU_CAPABILITY
// (baseline|default, avx2, avx512). Decided at the first call, then fixed.
Isa current_isa();

const char* isa_name(Isa isa);

// The best set of this processor, whatever the environment asks for.
Isa detected_isa();

// Picks the table of the instruction set in use. `Table` is a struct of function pointers.
template <typename Table>
const Table& select_table(const Table& baseline, [[maybe_unused]] const Table& avx2,
                          [[maybe_unused]] const Table& avx512) {
  switch (current_isa()) {
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace d2lfast::cpu

// A kernel family's tables of one name, one for each instruction set; outside of any namespace.
#define D2LFAST_DECLARE_TABLES(Table, name) \
  namespace d2lfast::cpu {                  \
  namespace baseline {                      \
  extern const Table name;                  \
  }                                         \
  namespace avx2 {                          \
  extern const Table name;                  \
  }                                         \
  namespace avx512 {                        \
  extern const Table name;                  \
  }                                         \
  }

// The one in use.
#define D2LFAST_SELECT_TABLE(name)                                                         \
  ::d2lfast::cpu::select_table(::d2lfast::cpu::baseline::name, ::d2lfast::cpu::avx2::name, \
                               ::d2lfast::cpu::avx512::name)
