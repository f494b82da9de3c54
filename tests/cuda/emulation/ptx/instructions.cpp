#include <algorithm>
#include <type_traits>

#include "counts.h"
#include "operations.h"
#include "warp_instructions.h"

// What the instructions do but for those of warps (PTX ISA 9.0, section 9.7).
namespace emulation::ptx {
namespace {

using d2lfast::BFloat16;
using d2lfast::Float16;
using Run = Instruction::Run;

[[noreturn]] void unknown(const std::vector<std::string>& operation) {
  std::string text = "PTX: operation";
  for (const std::string& part : operation) text += " " + part;
  throw std::runtime_error(text);
}

template <typename T>
struct Type {
  using type = T;
};

// A value in a lane: of 16 bits and less in a lane of 32.
template <typename T>
using Slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <typename T>
T get(const Slot<T>* from, int lane) {
  T value;
  std::memcpy(&value, &from[lane], sizeof(T));
  return value;
}
template <typename T>
void put(Slot<T>* to, int lane, T value) {
  Slot<T> slot = 0;
  std::memcpy(&slot, &value, sizeof(T));
  to[lane] = slot;
}

template <typename To, typename From, typename Op>
void unary(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<Slot<To>>(i.operands[0]);
  if (i.widths[1] > static_cast<int>(sizeof(Slot<From>))) {  // cvt of a part of a register
    const auto* a = w.at<uint64_t>(i.operands[1]);
    each_lane(lanes, [&](int l) {
      const auto part = static_cast<Slot<From>>(a[l]);
      put<To>(to, l, Op{}(get<From>(&part, 0)));
    });
    return;
  }
  const auto* a = w.at<Slot<From>>(i.operands[1]);
  each_lane(lanes, [&](int l) { put<To>(to, l, Op{}(get<From>(a, l))); });
}
template <typename T, typename Op>
void binary(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<Slot<T>>(i.operands[0]);
  const auto *a = w.at<Slot<T>>(i.operands[1]), *b = w.at<Slot<T>>(i.operands[2]);
  each_lane(lanes, [&](int l) { put<T>(to, l, Op{}(get<T>(a, l), get<T>(b, l))); });
}
template <typename T, typename Op>
void ternary(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<Slot<T>>(i.operands[0]);
  const auto *a = w.at<Slot<T>>(i.operands[1]), *b = w.at<Slot<T>>(i.operands[2]),
             *c = w.at<Slot<T>>(i.operands[3]);
  each_lane(lanes, [&](int l) { put<T>(to, l, Op{}(get<T>(a, l), get<T>(b, l), get<T>(c, l))); });
}
// to of type To, a and b of From, c of To.
template <typename To, typename From, bool kAdd>
void wide_product(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<Slot<To>>(i.operands[0]);
  const auto *a = w.at<Slot<From>>(i.operands[1]), *b = w.at<Slot<From>>(i.operands[2]);
  const auto* c = w.at<Slot<To>>(i.operands[kAdd ? 3 : 0]);
  each_lane(lanes, [&](int l) {
    const To product = static_cast<To>(get<From>(a, l)) * static_cast<To>(get<From>(b, l));
    put<To>(to, l, kAdd ? static_cast<To>(product + get<To>(c, l)) : product);
  });
}
template <typename T, typename Op>
void shift(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<Slot<T>>(i.operands[0]);
  const auto* a = w.at<Slot<T>>(i.operands[1]);
  const auto* b = w.at<uint32_t>(i.operands[2]);
  each_lane(lanes, [&](int l) { put<T>(to, l, Op{}(get<T>(a, l), b[l])); });
}
template <typename T>
void select(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<Slot<T>>(i.operands[0]);
  const auto *a = w.at<Slot<T>>(i.operands[1]), *b = w.at<Slot<T>>(i.operands[2]);
  const uint32_t chosen = w.predicate(i.operands[3]);
  each_lane(lanes, [&](int l) { to[l] = chosen >> l & 1 ? a[l] : b[l]; });
}
template <typename T, typename Op>
void compare(Warp& w, const Instruction& i, uint32_t lanes) {
  const auto *a = w.at<Slot<T>>(i.operands[1]), *b = w.at<Slot<T>>(i.operands[2]);
  uint32_t bits = 0;
  each_lane(lanes, [&](int l) { bits |= static_cast<uint32_t>(Op{}(get<T>(a, l), get<T>(b, l))) << l; });
  uint32_t& to = w.predicate(i.operands[0]);
  to = (to & ~lanes) | bits;
}
template <typename Op>
void predicates(Warp& w, const Instruction& i, uint32_t lanes) {
  uint32_t bits;
  if constexpr (std::is_invocable_v<Op, uint32_t>) {
    bits = Op{}(w.predicate(i.operands[1]));
  } else {
    bits = Op{}(w.predicate(i.operands[1]), w.predicate(i.operands[2]));
  }
  uint32_t& to = w.predicate(i.operands[0]);
  to = (to & ~lanes) | (bits & lanes);
}

// Of two floats, the first is the upper half.
template <typename Op>
void pack_halves(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<uint32_t>(i.operands[0]);
  const auto *a = w.at<uint32_t>(i.operands[1]), *b = w.at<uint32_t>(i.operands[2]);
  each_lane(lanes, [&](int l) {
    to[l] = static_cast<uint32_t>(Op{}(get<float>(a, l))) << 16 | Op{}(get<float>(b, l));
  });
}

template <typename Body>
Run by_type(const std::vector<std::string>& operation, const std::string& type, Body&& body) {
  if (type == "s8") return body(Type<int8_t>{});
  if (type == "u8" || type == "b8") return body(Type<uint8_t>{});
  if (type == "s16") return body(Type<int16_t>{});
  if (type == "u16" || type == "b16") return body(Type<uint16_t>{});
  if (type == "s32") return body(Type<int32_t>{});
  if (type == "u32" || type == "b32") return body(Type<uint32_t>{});
  if (type == "s64") return body(Type<int64_t>{});
  if (type == "u64" || type == "b64") return body(Type<uint64_t>{});
  if (type == "f32") return body(Type<float>{});
  if (type == "f64") return body(Type<double>{});
  unknown(operation);
}

template <typename Body>
Run by_integer(const std::vector<std::string>& operation, Body&& body) {
  return by_type(operation, operation.back(), [&](auto t) -> Run {
    if constexpr (std::is_integral_v<typename decltype(t)::type>) return body(t);
    unknown(operation);
  });
}

template <typename Body>
Run by_comparison(const std::vector<std::string>& operation, Body&& body) {
  const std::string& name = operation[1];
  if (name == "eq") return body(Eq{});
  if (name == "ne") return body(Ne{});
  if (name == "lt" || name == "lo") return body(Lt{});
  if (name == "le" || name == "ls") return body(Le{});
  if (name == "gt" || name == "hi") return body(Gt{});
  if (name == "ge" || name == "hs") return body(Ge{});
  if (name == "equ") return body(Equ{});
  if (name == "neu") return body(Neu{});
  if (name == "ltu") return body(Ltu{});
  if (name == "leu") return body(Leu{});
  if (name == "gtu") return body(Gtu{});
  if (name == "geu") return body(Geu{});
  if (name == "num") return body(Num{});
  if (name == "nan") return body(Nan{});
  unknown(operation);
}

// Pairs of 16-bit floats: two predicates, or a mask of each.
template <typename T, typename Op>
void compare_halves(Warp& w, const Instruction& i, uint32_t lanes) {
  const bool masks = i.operands.size() == 3;
  const auto *a = w.at<uint32_t>(i.operands[masks ? 1 : 2]), *b = w.at<uint32_t>(i.operands[masks ? 2 : 3]);
  each_lane(lanes, [&](int l) {
    bool holds[2];
    for (int half = 0; half < 2; ++half) {
      holds[half] = Op{}(half_of<T>(a[l], half), half_of<T>(b[l], half));
    }
    if (masks) {
      w.at<uint32_t>(i.operands[0])[l] = (holds[0] ? 0xffffu : 0) | (holds[1] ? 0xffff0000u : 0);
      return;
    }
    for (int half = 0; half < 2; ++half) {
      uint32_t& to = w.predicate(i.operands[half]);
      to = (to & ~(1u << l)) | static_cast<uint32_t>(holds[half]) << l;
    }
  });
}

template <typename T>
void insert_bits(Warp& w, const Instruction& i, uint32_t lanes) {
  auto* to = w.at<T>(i.operands[0]);
  const auto *a = w.at<T>(i.operands[1]), *b = w.at<T>(i.operands[2]);
  const auto *at = w.at<uint32_t>(i.operands[3]), *count = w.at<uint32_t>(i.operands[4]);
  each_lane(lanes, [&](int l) {
    const uint32_t first = at[l] & 0xff, bits = count[l] & 0xff;
    if (first >= 8 * sizeof(T)) {
      to[l] = b[l];
      return;
    }
    const T mask = (bits >= 8 * sizeof(T) ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << bits) - 1))
                   << first;
    to[l] = (b[l] & ~mask) | (static_cast<T>(a[l] << first) & mask);
  });
}

// Halves of a register, the lower first.
template <typename T>
void unpack(Warp& w, const Instruction& i, uint32_t lanes) {
  constexpr int kBits = 4 * sizeof(T);
  auto *low = w.at<uint32_t>(i.operands[0]), *high = w.at<uint32_t>(i.operands[1]);
  const auto* from = w.at<T>(i.operands[2]);
  each_lane(lanes, [&](int l) {
    const T whole = from[l];
    low[l] = static_cast<uint32_t>(whole & ((T{1} << kBits) - 1));
    high[l] = static_cast<uint32_t>(whole >> kBits);
  });
}
template <typename T>
void pack(Warp& w, const Instruction& i, uint32_t lanes) {
  constexpr int kBits = 4 * sizeof(T);
  const auto *low = w.at<uint32_t>(i.operands[1]), *high = w.at<uint32_t>(i.operands[2]);
  auto* to = w.at<T>(i.operands[0]);
  each_lane(lanes, [&](int l) {
    to[l] = static_cast<T>(high[l]) << kBits | (static_cast<T>(low[l]) & ((T{1} << kBits) - 1));
  });
}
template <typename T>
void move(Warp& w, const Instruction& i, uint32_t lanes) {
  if (i.operands.size() == 2) return unary<T, T, Same>(w, i, lanes);
  if constexpr (std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>) {
    if (i.operands.size() == 3) {
      return i.text.find('{') < i.text.find(',') ? unpack<T>(w, i, lanes) : pack<T>(w, i, lanes);
    }
  }
  throw std::runtime_error("PTX: " + i.text);
}

// Memory. A vector's alignment is that of all of it.
enum class Space { kGlobal, kShared, kParameter };

template <typename T>
void put_extended(Warp& w, int32_t offset, int width, int lane, T value) {
  if (width == 8) {
    w.at<uint64_t>(offset)[lane] = static_cast<uint64_t>(value);
  } else {
    w.at<uint32_t>(offset)[lane] = static_cast<uint32_t>(value);
  }
}

unsigned char* place(Warp& w, const Instruction& i, int operand, Space space, int size, int lane,
                     bool write) {
  const uint64_t address = w.address(i, operand, lane);
  if (space == Space::kShared) return w.shared(address & 0xffffffffu, size, lane, write);
  if (space == Space::kParameter) return const_cast<unsigned char*>(w.parameters) + address;
  return w.global(address, size, lane, write);
}

void count(Warp& w, const Instruction& i, int operand, Space space, int size, uint32_t lanes) {
  if (space == Space::kShared) count_shared(w, i, operand, lanes, size);
  if (space == Space::kGlobal) count_global(w, i, operand, lanes, size);
}

template <typename T, int V, Space kSpace>
void read(Warp& w, const Instruction& i, uint32_t lanes) {
  count(w, i, V, kSpace, V * sizeof(T), lanes);
  each_in_turn(lanes, [&](int l) {
    T value[V];
    std::memcpy(value, place(w, i, V, kSpace, V * sizeof(T), l, false), sizeof(value));
    for (int v = 0; v < V; ++v) put_extended(w, i.operands[v], i.widths[v], l, value[v]);
  });
}
template <typename T, int V, Space kSpace>
void write(Warp& w, const Instruction& i, uint32_t lanes) {
  count(w, i, 0, kSpace, V * sizeof(T), lanes);
  each_in_turn(lanes, [&](int l) {
    T value[V];
    for (int v = 0; v < V; ++v) value[v] = static_cast<T>(w.integer(i, 1 + v, l));
    std::memcpy(place(w, i, 0, kSpace, V * sizeof(T), l, true), value, sizeof(value));
  });
}

template <typename Body>
Run by_access(const std::vector<std::string>& operation, Body&& body) {
  const std::string& type = operation.back();
  int count = 1;
  Space space = Space::kGlobal;  // also of generic addresses: there are none of shared memory
  for (const std::string& part : operation) {
    if (part == "v2") count = 2;
    if (part == "v4") count = 4;
    if (part == "v8") count = 8;
    if (part == "shared" || part == "shared::cluster") space = Space::kShared;
    if (part == "param") space = Space::kParameter;
    if (part == "local" || part == "const") unknown(operation);
  }
  const auto with_space = [&](auto t, auto v) -> Run {
    if (space == Space::kGlobal) return body(t, v, std::integral_constant<Space, Space::kGlobal>{});
    if (space == Space::kShared) return body(t, v, std::integral_constant<Space, Space::kShared>{});
    return body(t, v, std::integral_constant<Space, Space::kParameter>{});
  };
  const auto with_count = [&](auto t) -> Run {
    if (count == 1) return with_space(t, std::integral_constant<int, 1>{});
    if (count == 2) return with_space(t, std::integral_constant<int, 2>{});
    if (count == 8) return with_space(t, std::integral_constant<int, 8>{});
    return with_space(t, std::integral_constant<int, 4>{});
  };
  if (type == "u8" || type == "b8") return with_count(Type<uint8_t>{});
  if (type == "s8") return with_count(Type<int8_t>{});
  if (type == "u16" || type == "b16") return with_count(Type<uint16_t>{});
  if (type == "s16") return with_count(Type<int16_t>{});
  if (type == "s32") return with_count(Type<int32_t>{});
  if (type == "u32" || type == "b32" || type == "f32") return with_count(Type<uint32_t>{});
  if (type == "u64" || type == "b64" || type == "s64" || type == "f64") return with_count(Type<uint64_t>{});
  unknown(operation);
}

// The grid's barrier alone has such: the block has arrived.
void add_atomically(Warp& w, const Instruction& i, uint32_t lanes) {
  each_in_turn(lanes, [&](int l) {
    auto* to = reinterpret_cast<uint32_t*>(place(w, i, 1, Space::kGlobal, 4, l, true));
    w.at<uint32_t>(i.operands[0])[l] = *to;
    *to += w.at<uint32_t>(i.operands[2])[l];
    ++w.grid->arrivals;
  });
}

struct InBlock {
  uint32_t operator()(uint32_t address, uint32_t rank) const { return (rank + 1) << kRankBits | address; }
};

void nothing(Warp&, const Instruction&, uint32_t) {}
void stop(Warp&, const Instruction&, uint32_t) { throw std::runtime_error("a trap"); }
void fail_assertion(Warp& w, const Instruction& i, uint32_t lanes) {
  const uint64_t text = w.at<uint64_t>(i.operands.at(0))[__builtin_ctz(lanes)];
  throw std::runtime_error("device-side assertion: " + std::string(reinterpret_cast<const char*>(text)));
}

template <typename Op>
Run arithmetic(const std::vector<std::string>& operation) {
  return by_type(operation, operation.back(),
                 [](auto t) -> Run { return binary<typename decltype(t)::type, Op>; });
}
template <typename Op>
Run bitwise(const std::vector<std::string>& operation) {
  const std::string& type = operation.back();
  if (type == "pred") return predicates<Op>;
  if (type == "b16") return binary<uint16_t, Op>;
  if (type == "b32") return binary<uint32_t, Op>;
  if (type == "b64") return binary<uint64_t, Op>;
  unknown(operation);
}
template <typename Op>
Run of_floats(const std::vector<std::string>& operation) {
  if (operation.back() == "f32") return unary<float, float, Op>;
  if (operation.back() == "f64") return unary<double, double, Op>;
  unknown(operation);
}

Run conversion(const std::vector<std::string>& operation) {
  std::string rounding;
  for (size_t part = 1; part + 2 < operation.size(); ++part) rounding += operation[part];
  const std::string &to = operation[operation.size() - 2], &from = operation.back();
  if (to == "f32" && from == "f16") return unary<float, uint16_t, FromHalf>;
  if (to == "f16" && from == "f32" && rounding == "rn") return unary<uint16_t, float, ToHalf>;
  if (to == "bf16" && from == "f32" && rounding == "rn") return unary<uint16_t, float, ToBFloat>;
  if (to == "f16x2" && rounding == "rn") return pack_halves<ToHalf>;
  if (to == "bf16x2" && rounding == "rn") return pack_halves<ToBFloat>;
  if (to == "tf32" && rounding == "rna") return unary<uint32_t, uint32_t, ToTf32>;
  if (to == "f32" && from == "f32" && rounding == "sat") return unary<float, float, Saturated>;
  if (to == from && rounding == "rni") return of_floats<Nearest>(operation);
  const bool to_float = to[0] == 'f', from_float = from[0] == 'f';
  const bool exact = !to_float || (to == "f64" && from == "f32");
  if (from_float && !to_float) unknown(operation);
  if (rounding != (exact ? "" : "rn")) unknown(operation);
  return by_type(operation, to, [&](auto t) {
    return by_type(operation, from, [&](auto f) -> Run {
      using To = typename decltype(t)::type;
      return unary<To, typename decltype(f)::type, Cast<To>>;
    });
  });
}

Run run_of(const std::vector<std::string>& o) {
  const std::string &name = o[0], &type = o.back();
  const auto has = [&](const char* part) { return std::find(o.begin(), o.end(), part) != o.end(); };
  const bool floating = type == "f32" || type == "f64";
  if (name == "add") return arithmetic<Add>(o);
  if (name == "sub") return arithmetic<Subtract>(o);
  if (name == "mul" && (floating || has("lo"))) return arithmetic<Multiply>(o);
  if (name == "mul" && has("hi")) {
    return by_integer(o, [](auto t) -> Run { return binary<typename decltype(t)::type, HighProduct>; });
  }
  if ((name == "mul" || name == "mad") && has("wide")) {
    const auto product = [&](auto to, auto from) -> Run {
      using To = typename decltype(to)::type;
      using From = typename decltype(from)::type;
      return name == "mad" ? wide_product<To, From, true> : wide_product<To, From, false>;
    };
    if (type == "s32") return product(Type<int64_t>{}, Type<int32_t>{});
    if (type == "u32") return product(Type<uint64_t>{}, Type<uint32_t>{});
    if (type == "s16") return product(Type<int32_t>{}, Type<int16_t>{});
    if (type == "u16") return product(Type<uint32_t>{}, Type<uint16_t>{});
  }
  if (name == "mad" && has("lo")) {
    return by_type(o, type, [](auto t) -> Run { return ternary<typename decltype(t)::type, MultiplyAdd>; });
  }
  if (name == "fma" && o[1] == "rn" && o.size() == 3) {
    if (type == "f32") return ternary<float, Fma>;
    if (type == "f64") return ternary<double, Fma>;
  }
  if (name == "fma" && o[1] == "rm" && o.size() == 3 && type == "f32") return ternary<float, FmaDown>;
  if (name == "div" && (!floating || has("rn"))) return arithmetic<Divide>(o);
  if (name == "rem") {
    return by_integer(o, [](auto t) -> Run { return binary<typename decltype(t)::type, Remainder>; });
  }
  if (name == "min" && o.size() == 2) return arithmetic<Least>(o);
  if (name == "max" && o.size() == 2) return arithmetic<Most>(o);
  if (name == "and") return bitwise<And>(o);
  if (name == "or") return bitwise<Or>(o);
  if (name == "xor") return bitwise<Xor>(o);
  if (name == "not" && type == "pred") return predicates<Complement>;
  if (name == "not" && type == "b16") return unary<uint16_t, uint16_t, Complement>;
  if (name == "not" && type == "b32") return unary<uint32_t, uint32_t, Complement>;
  if (name == "not" && type == "b64") return unary<uint64_t, uint64_t, Complement>;
  if (name == "neg") {
    return by_type(o, type, [](auto t) -> Run {
      return unary<typename decltype(t)::type, typename decltype(t)::type, Negative>;
    });
  }
  if (name == "abs" && floating) return of_floats<Magnitude>(o);
  if (name == "abs" && type == "s32") return unary<int32_t, int32_t, Magnitude>;
  if (name == "rcp") return of_floats<Reciprocal>(o);
  if (name == "sqrt" && has("rn")) return of_floats<Root>(o);
  if (name == "ex2" && type == "f32") return of_floats<Power>(o);
  if (name == "copysign" && type == "f32") return binary<float, CopySign>;
  if (name == "copysign" && type == "f64") return binary<double, CopySign>;
  if (name == "shl") {
    return by_integer(o, [](auto t) -> Run { return shift<typename decltype(t)::type, Left>; });
  }
  if (name == "shr") {
    return by_integer(o, [](auto t) -> Run { return shift<typename decltype(t)::type, Right>; });
  }
  if (name == "prmt" && o.size() == 2) return ternary<uint32_t, PermuteBytes>;
  if (name == "bfe" && type == "u32") return ternary<uint32_t, ExtractBits>;
  if (name == "dp2a" && has("lo") && o[2] == "u32" && o[3] == "u32") return ternary<uint32_t, HalvesByBytes>;
  if (name == "bfi" && type == "b32") return insert_bits<uint32_t>;
  if (name == "bfi" && type == "b64") return insert_bits<uint64_t>;
  if (name == "selp") {
    return by_type(o, type, [](auto t) -> Run { return select<typename decltype(t)::type>; });
  }
  if ((name == "setp" || name == "set") && (type == "f16x2" || type == "bf16x2")) {
    return by_comparison(o, [&](auto op) -> Run {
      if (type == "f16x2") return compare_halves<Float16, decltype(op)>;
      return compare_halves<BFloat16, decltype(op)>;
    });
  }
  if (name == "set" && o[2] == "f32" && type == "f32") {
    return by_comparison(o, [](auto op) -> Run { return binary<float, OneIf<decltype(op)>>; });
  }
  if (name == "setp" && o.size() == 3) {
    return by_comparison(o, [&](auto op) {
      return by_type(o, type,
                     [](auto t) -> Run { return compare<typename decltype(t)::type, decltype(op)>; });
    });
  }
  if (name == "mov" && type == "pred") return predicates<Same>;
  if (name == "mov") return by_type(o, type, [](auto t) -> Run { return move<typename decltype(t)::type>; });
  if (name == "popc" && type == "b64") return unary<uint32_t, uint64_t, Population>;
  if (name == "cvta") return unary<uint64_t, uint64_t, Same>;
  if (name == "cvt") return conversion(o);
  if (name == "ld") {
    return by_access(
        o, [](auto t, auto v, auto s) -> Run { return read<typename decltype(t)::type, v(), s()>; });
  }
  if (name == "st") {
    return by_access(
        o, [](auto t, auto v, auto s) -> Run { return write<typename decltype(t)::type, v(), s()>; });
  }
  if (name == "atom" && o[1] == "add" && type == "u32") return add_atomically;
  for (const char* other : {"prefetch", "fence", "bra", "ret", "bar", "barrier"}) {
    if (name == other) return nothing;
  }
  if (name == "mapa" && o[1] == "shared::cluster" && type == "u32") return binary<uint32_t, InBlock>;
  if (name == "trap") return stop;
  if (name == "call") return fail_assertion;
  if (const Run run = warp_instruction(o)) return run;
  unknown(o);
}

}  // namespace

void set_operation(Instruction& instruction, const std::vector<std::string>& operation) {
  const std::string& name = operation[0];
  instruction.run = run_of(operation);
  if (instruction.run == nullptr) unknown(operation);
  if (name == "bra") instruction.kind = Kind::kBranch;
  if (name == "ret") instruction.kind = Kind::kExit;
  if (name == "bar" || name == "barrier") instruction.kind = Kind::kBarrier;
  if (name == "barrier" && operation[1] == "cluster") {
    // As if a warp arrived where it waits: kernels have nothing between the two.
    instruction.kind = operation[2] == "wait" ? Kind::kClusterBarrier : Kind::kPlain;
  }
  if (name == "ld" && operation[1] == "acquire") instruction.kind = Kind::kYield;
  const bool copies =
      name == "cp" && (operation.back() == "commit_group" || operation.back() == "wait_group");
  for (const char* collective : {"shfl", "vote", "ldmatrix", "mma", "wgmma"}) {
    if (name == collective || copies) instruction.kind = Kind::kCollective;
  }
}

}  // namespace emulation::ptx
