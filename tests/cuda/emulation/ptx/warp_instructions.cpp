#include "warp_instructions.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "counts.h"
#include "operations.h"

namespace emulation::ptx {

using d2lfast::BFloat16;
using d2lfast::Float16;
using d2lfast::cuda::to_compute;

namespace {

// Operands: result, whether its lane is in the segment, value, lane or mask, clamp and segments, members.
template <bool kButterfly>
void shuffle(Warp& w, const Instruction& i, uint32_t) {
  std::array<std::array<uint32_t, kLanes>, 4> given;
  for (int n = 0; n < 4; ++n) std::copy_n(w.at<uint32_t>(i.operands[2 + n]), kLanes, given[n].begin());
  const auto& [value, choice, limits, members] = given;
  uint32_t& inside = w.predicate(i.operands[1]);
  inside = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(w.live >> l & 1)) continue;
    if (members[l] != w.live) throw std::runtime_error("a shuffle of lanes that have ended");
    const uint32_t lane = static_cast<uint32_t>(l), segment = limits[l] >> 8 & 31, clamp = limits[l] & 31;
    const uint32_t highest = (lane & segment) | (clamp & ~segment), chosen = choice[l] & 31;
    const uint32_t source = kButterfly ? lane ^ chosen : (lane & segment) | (chosen & ~segment);
    const bool good = source <= highest;
    w.at<uint32_t>(i.operands[0])[l] = value[good ? source : lane];
    inside |= static_cast<uint32_t>(good) << l;
  }
}

void ballot(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint32_t bits = w.predicate(i.operands[1]) & lanes;
  each_lane(lanes, [&](int l) { w.at<uint32_t>(i.operands[0])[l] = bits; });
}

// Matrices of 8 lines of 16 bytes.
template <bool kTransposed>
void read_matrices(Warp& w, const Instruction& i, uint32_t) {
  count_shared(w, i, 4, kAllLanes, 16);
  uint16_t matrix[4][8][8];
  for (int l = 0; l < kLanes; ++l) {
    std::memcpy(matrix[l / 8][l % 8], w.shared(w.address(i, 4, l), 16, l, false), 16);
  }
  for (int m = 0; m < 4; ++m) {
    for (int l = 0; l < kLanes; ++l) {
      const int g = l / 4, t = l % 4 * 2;
      const uint16_t low = kTransposed ? matrix[m][t][g] : matrix[m][g][t];
      const uint16_t high = kTransposed ? matrix[m][t + 1][g] : matrix[m][g][t + 1];
      w.at<uint32_t>(i.operands[m])[l] = static_cast<uint32_t>(high) << 16 | low;
    }
  }
}

// Operands: 4 of the sum, 4 of the left factor, 2 of the right, 4 of what is added.
template <typename T>
void multiply(Warp& w, const Instruction& i, uint32_t) {
  constexpr bool kTf32 = std::is_same_v<T, float>;
  constexpr int kDepth = kTf32 ? 8 : 16;
  float left[16][kDepth], right[8][kDepth], sum[16][8];
  const auto word = [&](int operand, int l) { return w.at<uint32_t>(i.operands[operand])[l]; };
  const auto tf32 = [](uint32_t bits) {
    bits &= ~0x1fffu;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  };
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int part = 0; part < 4; ++part) {
      const int row = g + part % 2 * 8;
      if constexpr (kTf32) {
        left[row][t + part / 2 * 4] = tf32(word(4 + part, l));
      } else {
        for (int half = 0; half < 2; ++half)
          left[row][2 * t + part / 2 * 8 + half] = half_of<T>(word(4 + part, l), half);
      }
    }
    for (int part = 0; part < 2; ++part) {
      if constexpr (kTf32) {
        right[g][t + part * 4] = tf32(word(8 + part, l));
      } else {
        for (int half = 0; half < 2; ++half)
          right[g][2 * t + part * 8 + half] = half_of<T>(word(8 + part, l), half);
      }
    }
    for (int part = 0; part < 4; ++part) {
      sum[g + part / 2 * 8][2 * t + part % 2] = w.at<float>(i.operands[10 + part])[l];
    }
  }
  for (auto& row : sum) {
    const auto& factors = left[&row - sum];
    for (int n = 0; n < 8; ++n) {
      for (int k = 0; k < kDepth; ++k) row[n] += factors[k] * right[n][k];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int part = 0; part < 4; ++part) {
      w.at<float>(i.operands[part])[l] = sum[g + part / 2 * 8][2 * t + part % 2];
    }
  }
}

// Asynchronous copies are made when they are waited for; until then their place is NaN in every type.
void copy_async(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t reading = 0;
  int bytes = 0;
  each_in_turn(lanes, [&](int l) {
    const auto to = static_cast<uint32_t>(w.address(i, 0, l));
    const uint64_t from = w.address(i, 1, l);
    const int valid = static_cast<int>(w.integer(i, 3, l));
    bytes = static_cast<int>(w.integer(i, 2, l));
    if (valid > 0) {
      w.global(from, bytes, l, false);
      reading |= 1u << l;
    }
    std::memset(w.shared(to, bytes, l, true), 0xff, bytes);
    w.copies.back().push_back({to, from, l, bytes, valid});
  });
  count_shared(w, i, 0, lanes, bytes);
  count_global(w, i, 1, reading, bytes);
}
void commit_copies(Warp& w, const Instruction&, uint32_t) { w.copies.emplace_back(); }
void wait_copies(Warp& w, const Instruction& i, uint32_t) {
  const uint32_t pending = w.at<uint32_t>(i.operands[0])[0];
  while (w.copies.size() > pending + 1) {
    for (const Copy& copy : w.copies.front()) {
      unsigned char* to = w.shared(copy.to, copy.bytes, copy.lane, true);
      std::memset(to, 0, copy.bytes);
      if (copy.valid > 0) std::memcpy(to, reinterpret_cast<const void*>(copy.from), copy.valid);
    }
    w.copies.erase(w.copies.begin());
  }
}

// Products of warpgroups (wgmma.mma_async) are computed when they are waited for; until then their sums are
// NaN. Operands: sums, descriptors of the factors, scales of the sums and of both factors, whether each
// factor is in lines of one k.
int columns_of(const Instruction& i) {
  const int columns = static_cast<int>(i.operands.size() - 7) * 2;
  if (i.text.find(".m64n" + std::to_string(columns) + "k16.f32.") == std::string::npos) {
    throw std::runtime_error("PTX: " + i.text);
  }
  return columns;
}

void begin_product(Warp& w, const Instruction& i, uint32_t) {
  const int sums = columns_of(i) / 2;
  const auto descriptor = [&](int n) {
    const uint64_t* lanes = w.at<uint64_t>(i.operands[sums + n]);
    if (std::count(lanes, lanes + kLanes, *lanes) != kLanes)
      throw std::runtime_error("factors that differ by lane");
    return *lanes;
  };
  auto& [first, kept] = w.sums[i.operands[0]];
  if (first == nullptr) {
    first = &i;
    for (int s = 0; s < sums; ++s) {
      float* lanes = w.at<float>(i.operands[s]);
      kept.insert(kept.end(), lanes, lanes + kLanes);
      std::fill_n(lanes, kLanes, std::numeric_limits<float>::quiet_NaN());
    }
  }
  w.products.back().push_back({&i, descriptor(0), descriptor(1)});
}

// Element (row, k) of a factor in the 128-byte swizzle, in lines along k or of one k each.
uint64_t factor_place(uint64_t descriptor, bool lines, int row, int k) {
  const auto field = [&](int begin) { return (descriptor >> begin & 0x3fff) * 16; };
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) throw std::runtime_error("a factor's layout");
  const uint64_t start = field(0), leading = field(16), stride = field(32);
  const uint64_t linear = lines ? start + row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2
                                : start + row / 8 * stride + row % 8 * 128 + k * 2;
  return linear ^ (linear >> 7 & 7) << 4;
}

template <typename T>
void run_product(Warp& w, const Product& p) {
  const Instruction& i = *p.instruction;
  const int columns = columns_of(i), sums = columns / 2;
  const auto constant = [&](int n) { return w.at<int32_t>(i.operands[sums + 2 + n])[0]; };
  if (constant(0) != 1 || constant(1) != 1 || constant(2) != 1) throw std::runtime_error("a product's scale");
  const bool left_lines = constant(3) != 0, right_lines = constant(4) != 0;
  const auto element = [&](uint64_t descriptor, bool lines, int row, int k) {
    uint16_t bits;
    const uint64_t place = factor_place(descriptor, lines, row, k);
    std::memcpy(&bits, w.shared(place, 2, row % kLanes, false), 2);
    return to_compute(T{bits});
  };
  const int first = w.number % 4 * 16;  // of the rows that are this warp's
  float left[16][16];
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) left[row][k] = element(p.left, left_lines, first + row, k);
  }
  std::vector<float>& kept = w.sums[i.operands[0]].second;
  for (int n = 0; n < columns; ++n) {
    float right[16];
    for (int k = 0; k < 16; ++k) right[k] = element(p.right, right_lines, n, k);
    for (int row = 0; row < 16; ++row) {
      const int s = n / 8 * 4 + row / 8 * 2 + n % 2, lane = row % 8 * 4 + n % 8 / 2;
      float& sum = kept[s * kLanes + lane];
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k];
    }
  }
}

void commit_products(Warp& w, const Instruction&, uint32_t) { w.products.emplace_back(); }

void wait_products(Warp& w, const Instruction& i, uint32_t) {
  const uint32_t pending = w.at<uint32_t>(i.operands[0])[0];
  while (w.products.size() > pending + 1) {
    for (const Product& p : w.products.front()) {
      const bool bfloat16 = p.instruction->text.find(".bf16") != std::string::npos;
      bfloat16 ? run_product<BFloat16>(w, p) : run_product<Float16>(w, p);
    }
    w.products.erase(w.products.begin());
  }
  std::erase_if(w.sums, [&](const auto& entry) {
    for (const auto& group : w.products) {
      for (const Product& p : group) {
        if (p.instruction->operands[0] == entry.first) return false;
      }
    }
    const auto& [first, kept] = entry.second;
    for (size_t s = 0; s < kept.size() / kLanes; ++s) {
      std::copy_n(&kept[s * kLanes], kLanes, w.at<float>(first->operands[s]));
    }
    return true;
  });
}

}  // namespace

Instruction::Run warp_instruction(const std::vector<std::string>& operation) {
  const std::string& name = operation[0];
  const auto has = [&](const char* part) {
    return std::find(operation.begin(), operation.end(), part) != operation.end();
  };
  if (name == "shfl" && has("bfly")) return shuffle<true>;
  if (name == "shfl" && has("idx")) return shuffle<false>;
  if (name == "vote" && has("ballot")) return ballot;
  if (name == "ldmatrix" && has("x4")) return has("trans") ? read_matrices<true> : read_matrices<false>;
  if (name == "mma" && has("m16n8k16") && has("f16")) return multiply<Float16>;
  if (name == "mma" && has("m16n8k16") && has("bf16")) return multiply<BFloat16>;
  if (name == "mma" && has("m16n8k8") && has("tf32")) return multiply<float>;
  if (name == "cp" && has("commit_group")) return commit_copies;
  if (name == "cp" && has("wait_group")) return wait_copies;
  if (name == "cp" && has("shared")) return copy_async;
  if (name == "wgmma" && has("fence")) return [](Warp&, const Instruction&, uint32_t) {};
  if (name == "wgmma" && has("commit_group")) return commit_products;
  if (name == "wgmma" && has("wait_group")) return wait_products;
  if (name == "wgmma" && has("mma_async")) return begin_product;
  return nullptr;
}

}  // namespace emulation::ptx
