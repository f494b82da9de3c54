#include "conv2d_algorithm.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>

#include "conv2d_cuda_rules.h"
#include "conv2d_tuning.h"
#include "cpu/conv2d_flat.h"
#include "cpu/conv2d_passes.h"

namespace d2lfast::ops {

namespace {

// What the rules look at.
struct Traits {
  int64_t group_channels;
  bool dense, depthwise, strided;
  bool odd;    // groups for which torch has no kernels of its own
  bool large;  // windows of more than 3x3, for whose depthwise weight gradient torch has no kernel of its own
  int64_t pixels;  // of a result plane
};

Traits traits_of(const Conv2dShape& s) {
  return {s.channels / s.groups,
          s.groups == 1,
          s.groups > 1 && s.groups == s.channels,
          s.stride[0] > 1 || s.stride[1] > 1,
          s.groups > 1 && s.groups != s.channels && s.channels / s.groups % 4 != 0,
          s.kernel_h > 3 && s.kernel_w > 3,
          s.result_height() * s.result_width()};
}

// Rules of `batch`.

// Few channels, on which oneDNN falls short, and enough small images to fill the vectors: their interleaved
// planes should stay near the second-level cache. oneDNN multiplies pairs of bfloat16.
bool batch_wins(const Conv2dShape& s, Conv2dPass pass) {
  constexpr int64_t kMostValues = 24 << 10, kLeastImages = 32;
  const int64_t results = s.result_channels * s.result_height() * s.result_width();
  if (s.batch < kLeastImages || batch_filled(s.batch) < 0.85 || s.channels > 10 || s.result_channels > 32 ||
      s.channels * s.height * s.width + results > kMostValues) {
    return false;
  }
  const bool wide = s.kernel_w > 3;
  if (s.dtype == DType::kBFloat16) {
    if (pass == Conv2dPass::kForward) return s.channels == 1;
    return pass == Conv2dPass::kGradInput && s.channels <= 8 && s.result_channels <= 16;
  }
  if (pass == Conv2dPass::kForward) return wide || s.channels == 1 || s.result_channels <= 8;
  if (pass == Conv2dPass::kGradInput) return true;
  if (s.channels_last || s.batch < 2 * kLeastImages) return false;
  return wide ? s.padding[0] == 0 && s.padding[1] == 0 : s.channels <= 8;
}

// Rules of `winograd`.

std::atomic<bool> allowed{true};

// Group by group. Other kernels, of dense layers, are cut into pieces of 3x3.
bool winograd_computes(const Conv2dShape& s, Conv2dPass pass) {
  if (s.cuda) return cuda_winograd_computes(s, pass);
  if (s.dilation[0] > 1 || s.dilation[1] > 1 || s.dtype == DType::kFloat64) return false;
  if (s.is_3x3()) return true;
  if (s.groups > 1) return false;
  const bool sizes = std::min(s.kernel_h, s.kernel_w) >= 2 && std::max(s.kernel_h, s.kernel_w) <= 15;
  return sizes && (pass != Conv2dPass::kGradInput || (s.stride[0] == 1 && s.stride[1] == 1));
}

bool winograd_2x2_computes(const Conv2dShape& s, Conv2dPass pass) {
  return !s.cuda && s.is_3x3() && winograd_computes(s, pass);
}

// Multiplications that the pieces of a larger kernel save over a direct convolution, channels and tiles
// filled up.
double saved_by_pieces(const Conv2dShape& s, Conv2dPass pass) {
  const auto filled = [](int64_t n, int64_t unit) {
    return static_cast<double>((n + unit - 1) / unit * unit);
  };
  const auto pieces = [](int64_t kernel, int64_t stride) {
    return kernel / (3 * stride) * stride + std::min(kernel % (3 * stride), stride);
  };
  const bool input = pass == Conv2dPass::kGradInput;
  const int64_t sources = input ? s.result_channels : s.channels;
  const int64_t results = input ? s.channels : s.result_channels;
  const auto [height, width] = s.plane(pass);
  const int64_t source_pieces = sources * pieces(s.kernel_h, s.stride[0]) * pieces(s.kernel_w, s.stride[1]);
  const auto direct = static_cast<double>(sources * results * s.kernel_h * s.kernel_w * height * width);
  return direct /
         (2.25 * filled(source_pieces, 16) * filled(results, 32) * filled(height, 4) * filled(width, 4));
}

// Groups of channels that nearly fill the vectors, planes that fill their tiles, and enough of them for the
// filters' transforms.
bool winograd_wins_grouped(const Conv2dShape& s, Conv2dPass pass) {
  const int64_t narrow = std::min(s.channels, s.result_channels) / s.groups;
  const auto [height, width] = s.plane(pass);
  const int64_t tiles = s.batch * ((height + 3) / 4) * ((width + 3) / 4);
  if (tiles * narrow < 1024 || std::min(height, width) < 3) return false;
  if (s.dtype == DType::kBFloat16) {
    return height % 4 == 0 && width % 4 == 0 && narrow >= (pass == Conv2dPass::kGradWeight ? 64 : 32);
  }
  const bool filled = 4 * s.batch * height * width >= 3 * 16 * tiles;
  const int64_t side = std::min(height, width);
  if (pass == Conv2dPass::kGradWeight) return narrow >= 24 || (narrow >= 16 && side >= 7);
  const bool whole = height % 4 == 0 && width % 4 == 0;
  if (narrow >= 16 && whole && side >= (s.channels_last ? 8 : 12)) return true;
  return narrow >= 128 || (narrow >= 24 && filled);
}

// With few tiles the transform of large filters is not paid back; nor is that of the tiles, for the weight
// gradient, with few channels or planes that fill their tiles badly. For bfloat16 oneDNN multiplies pairs,
// at twice the rate: there the tiles have to be full.
bool winograd_wins(const Conv2dShape& s, Conv2dPass pass) {
  if (s.cuda) return false;
  if (s.groups > 1) return s.is_3x3() && winograd_wins_grouped(s, pass);
  const auto [height, width] = s.plane(pass);
  const int64_t tiles = s.batch * ((height + 3) / 4) * ((width + 3) / 4);
  const int64_t products = s.channels * s.result_channels, sum = s.channels + s.result_channels;
  if (!s.is_3x3()) {
    if (s.dtype != DType::kFloat32 || tiles < 48 || saved_by_pieces(s, pass) < (s.channels_last ? 2.2 : 1.9))
      return false;
    if (tiles < 128 && (pass != Conv2dPass::kForward || s.channels < 32)) return false;
    if (pass == Conv2dPass::kForward) return true;
    if (pass == Conv2dPass::kGradInput) return s.channels >= 64;
    const int64_t pieces = s.kernel_h * s.kernel_w / 9 + 1;  // about
    const int64_t least = s.stride[0] * s.stride[1] > 1 ? 12 : 40;
    return pieces * products >= least * (pieces * s.channels + s.result_channels);
  }
  if (s.channels < 16 || s.result_channels < 16) return false;
  const int64_t side = std::min(height, width);  // a tile of a smaller plane is mostly padding
  if (s.dtype == DType::kBFloat16) {
    const bool whole = height % 4 == 0 && width % 4 == 0, few = products <= 128 * 128;
    const bool full = whole || 4 * s.batch * height * width >= 3 * 16 * tiles;
    if (pass == Conv2dPass::kGradWeight) {
      return side == 3 || (full && side > 3 && products >= 96 * sum && (whole || side < 8));
    }
    if (!full || side < 4 || std::min(s.channels, s.result_channels) < 32) return false;
    return whole ? tiles >= 18 : few && tiles >= 128;
  }
  if (pass == Conv2dPass::kGradWeight) {
    if (tiles <= 64) return side >= 2 && (products >= 16 * sum || side >= 7);
    return side >= 2 && products >= (side < 8 && side > 4 ? 32 : 16) * sum;
  }
  const int64_t results = pass == Conv2dPass::kForward ? s.result_channels : s.channels;
  if (side < 4 && results < 64) return false;
  return side >= 3 && (tiles >= 4 || products < 128 * 128);
}

// The smaller tiles where they need no more products than the larger ones: planes of side 2, 5 and 6, which
// those fill badly, and single images of side 3. The transform of the filters counts as three tiles.
bool winograd_2x2_wins(const Conv2dShape& s, Conv2dPass pass) {
  const auto plane = s.plane(pass);
  const int64_t side = std::min(plane[0], plane[1]);
  const auto products_of = [&](int64_t tile) {
    const int64_t tiles = s.batch * ((plane[0] + tile - 1) / tile) * ((plane[1] + tile - 1) / tile);
    return (tile + 2) * (tile + 2) * (tiles + 3);
  };
  if (s.groups > 1 || side < 2 || products_of(2) > products_of(4)) return false;
  if (std::min(s.channels, s.result_channels) < 16) return false;
  const int64_t products = s.channels * s.result_channels;
  if (s.dtype == DType::kBFloat16) {
    return pass == Conv2dPass::kGradWeight && side == 2 && products >= 64 * 64;
  }
  if (pass == Conv2dPass::kGradWeight || side > 3) return winograd_wins(s, pass);
  return s.batch > 1 || products >= 256 * 256;
}

// Rules of `gemm`.

bool gemm_computes(const Conv2dShape& s, Conv2dPass) {
  return !s.cuda && s.groups == 1 && s.kernel_h == 1 && s.kernel_w == 1 && s.padding[0] == 0 &&
         s.padding[1] == 0 && !s.channels_last && s.channels > 0;
}

// On small planes oneDNN's weight gradient of many channels is near the peak.
bool gemm_wins(const Conv2dShape& s, Conv2dPass pass) {
  if (s.channels < 8 || s.result_channels < 8) return false;
  const Traits t = traits_of(s);
  const int64_t products = s.channels * s.result_channels;
  if (s.dtype == DType::kBFloat16) {
    return products < 24 * 24 || (t.strided && pass == Conv2dPass::kGradInput);
  }
  if (t.pixels >= 96) return pass != Conv2dPass::kGradInput || t.pixels > 196 || products < 256 * 512;
  return t.pixels >= 16 && (pass != Conv2dPass::kGradWeight || t.strided || products < 384 * 320);
}

// Rules of `direct`.

// Where the direct kernels measured faster than oneDNN in float32 on AVX-512. oneDNN is near the machine's
// peak for dense layers of many channels; it falls short for few channels, groups in NCHW, and the input
// gradient of strided layers.
bool direct_float32(const Conv2dShape& s, Conv2dPass pass) {
  const Traits t = traits_of(s);
  const bool narrow = !t.strided && t.group_channels < 24;
  const bool wide_planes = !s.channels_last && narrow && !t.depthwise && t.pixels >= 400;
  const bool uneven = narrow && t.group_channels > 8 && t.group_channels < 16 && t.pixels >= 196;
  switch (pass) {
    case Conv2dPass::kForward:
      if (!t.dense) return uneven || wide_planes;
      if (s.channels_last) return s.channels == 1;
      return s.channels == 1 || (s.channels <= 4 && !t.strided);
    case Conv2dPass::kGradInput:
      if (!t.dense) return uneven || wide_planes;
      if (s.channels_last) return t.group_channels <= 8;
      return t.group_channels <= 8 || (t.strided && s.channels <= 64 && s.height * s.width >= 784);
    default:
      if (s.channels_last) {
        if (!t.dense) return !t.depthwise && !t.strided && t.pixels >= 400 && t.group_channels <= 8;
        if (t.group_channels == 1) return !t.strided && (s.result_channels <= 8 || t.pixels >= 4096);
        if (t.group_channels <= 4) return t.strided;
        return t.strided && t.pixels >= 784;
      }
      if (s.channels == 1 && s.result_channels > 32 && t.pixels < 4096) return false;
      if (t.dense) return !t.strided && t.group_channels <= 8;
      if (t.depthwise && t.large) return true;
      if (t.large && t.group_channels % 8 == 0) return false;
      return uneven || (narrow && t.group_channels <= 16 && t.pixels >= 400);
  }
}

// bfloat16: oneDNN multiplies pairs with AVX512-BF16, at twice the rate of the direct kernels.
bool direct_bfloat16(const Conv2dShape& s, Conv2dPass pass) {
  const Traits t = traits_of(s);
  const bool few = t.odd && t.group_channels <= 8 && !t.strided;
  switch (pass) {
    case Conv2dPass::kForward:
      if (s.channels_last) return s.channels == 1 && !t.strided;
      return t.dense ? t.group_channels == 1 : few;
    case Conv2dPass::kGradInput:
      if (s.channels_last) return t.dense && t.group_channels <= 8;
      return t.dense ? t.group_channels <= 4 : few;
    default:
      if (t.dense) {
        return t.group_channels == 1 && !t.strided && (s.result_channels <= 12 || t.pixels < 4096);
      }
      if (s.channels_last) return few && t.pixels >= 784;
      return t.group_channels <= 8 && (t.depthwise ? t.large : t.pixels >= 36);
  }
}

bool direct_wins(const Conv2dShape& s, Conv2dPass pass) {
  if (s.dtype == DType::kFloat32) return direct_float32(s, pass);
  if (s.dtype == DType::kBFloat16) return direct_bfloat16(s, pass);
  // torch has no oneDNN path for float64, and none for float16 without AVX512-FP16. Its GEMM wins the
  // weight gradient of many channels on small planes.
  const Traits t = traits_of(s);
  return s.dtype == DType::kFloat16 || pass != Conv2dPass::kGradWeight || t.group_channels < 256 ||
         t.pixels > 196;
}

// Rules of `channels`.

// Grouped layers in channels_last. oneDNN has kernels of its own for depthwise layers, which win where they
// are strided or small enough for the caches; on AVX512-BF16 it multiplies wide groups at twice our rate.
bool channels_wins(const Conv2dShape& s, Conv2dPass pass) {
  if (!s.channels_last || s.groups == 1) return false;
  if (s.dtype == DType::kFloat16 || s.dtype == DType::kFloat64) return true;
  const Traits t = traits_of(s);
  if (t.depthwise && s.result_channels == s.channels) {
    if (pass == Conv2dPass::kGradWeight && t.large) return true;
    if (t.strided) return s.dtype == DType::kBFloat16 && pass == Conv2dPass::kGradInput;
    if (pass == Conv2dPass::kGradWeight) return t.pixels >= (s.dtype == DType::kFloat32 ? 500 : 1600);
    const bool in_cache = pass == Conv2dPass::kForward && s.batch * s.channels * t.pixels < (3 << 20);
    return s.kernel_w == 3 && t.pixels >= 784 && s.dtype == DType::kFloat32 && !in_cache;
  }
  if (s.dtype == DType::kFloat32) {
    const bool small = s.kernel_w <= 3;
    if (t.group_channels < 8) return true;
    if (t.group_channels == 8) {
      if (pass == Conv2dPass::kGradWeight) return t.pixels >= (small ? 100 : 196);
      return small ? t.strided || t.pixels >= 100 : t.strided && pass == Conv2dPass::kGradInput;
    }
    return pass != Conv2dPass::kGradWeight && small && t.group_channels >= (t.strided ? 17 : 16) &&
           t.pixels >= 196;
  }
  if (t.odd) return t.group_channels <= 8;
  if (t.group_channels > 4) return false;
  if (pass == Conv2dPass::kGradWeight || s.kernel_w <= 3 || t.group_channels < 4) return true;
  return t.strided && pass == Conv2dPass::kGradInput;
}

// Rules of `planes`.

// Grouped layers in NCHW. Flat planes fill their vectors whatever their width; rows do where the result is
// wide enough. Small depthwise layers are oneDNN's, and so are wide groups, where it multiplies blocks of 16.
bool planes_wins(const Conv2dShape& s, Conv2dPass pass) {
  if (s.groups == 1) return false;
  const Traits t = traits_of(s);
  const bool bfloat16 = s.dtype == DType::kBFloat16;
  if (s.dtype == DType::kFloat16 || s.dtype == DType::kFloat64) return t.group_channels <= 16;
  if (pass == Conv2dPass::kGradWeight) {
    if (t.depthwise ? t.large : t.group_channels < 8) return true;
    if (t.group_channels == 8 && (s.kernel_w > 3 || (!t.strided && t.pixels < 400))) return false;
    return t.group_channels <= 8 && s.result_width() >= 12;
  }
  // Planes of a vector or two leave lanes empty, and the phases of a strided data gradient are planes.
  const bool phases = t.strided && pass == Conv2dPass::kGradInput;
  if (t.odd && flat_computes(s, pass)) return t.group_channels <= (t.pixels >= 36 && !bfloat16 ? 16 : 8);
  if (bfloat16 && t.strided) {
    if (t.depthwise && phases) return true;
    return t.group_channels <= 4 && t.pixels >= (phases || t.depthwise ? 784 : 196);
  }
  const bool flat = !bfloat16 && flat_computes(s, pass);
  if (flat && !t.depthwise) {
    const int64_t least = t.strided ? 100 : s.kernel_w > 3 ? 400 : 64;
    if (t.group_channels % 16 == 0 && t.pixels < least) return false;
    if (t.group_channels == 8 && t.pixels < (s.kernel_w > 3 && !t.strided ? 400 : 100)) return false;
    if (t.strided && t.pixels < (phases ? 100 : 36)) return false;
    return t.group_channels <= (t.pixels >= 36 ? 16 : 8);
  }
  if (t.depthwise && (s.kernel_w > 5 || (phases && t.pixels < 500))) return false;
  const int64_t most = bfloat16 ? 4 : 8;  // oneDNN multiplies pairs of bfloat16
  if ((t.strided && !flat) || t.group_channels > most) return false;
  if (t.depthwise && bfloat16) return s.result_width() >= (s.kernel_w > 3 ? 40 : 24);
  return s.result_width() >= (phases ? 14 : 20);
}

// The table.

bool always(const Conv2dShape&, Conv2dPass) { return true; }
bool never(const Conv2dShape&, Conv2dPass) { return false; }
bool direct_computes(const Conv2dShape& s, Conv2dPass) { return !s.cuda || cuda_direct_computes(s); }
bool direct_wins_there(const Conv2dShape& s, Conv2dPass pass) {
  return s.cuda ? cuda_direct_wins(s, pass) : direct_wins(s, pass);
}

// The first row that computes the pass of a shape and wins there is taken.
struct Row {
  Conv2dAlgorithm algorithm;
  const char* name;
  bool (*computes)(const Conv2dShape& shape, Conv2dPass pass);  // the kernels can do it
  bool (*wins)(const Conv2dShape& shape, Conv2dPass pass);      // and measured faster than the rows below
  bool rounds = false;  // more than a plain sum does: only where allowed
};

constexpr Row kTable[] = {
    {Conv2dAlgorithm::kBatch, "batch", batch_computes, batch_wins},
    {Conv2dAlgorithm::kWinograd2x2, "winograd_2x2", winograd_2x2_computes, winograd_2x2_wins, true},
    {Conv2dAlgorithm::kWinograd, "winograd", winograd_computes, winograd_wins, true},
    {Conv2dAlgorithm::kGemm, "gemm", gemm_computes, gemm_wins},
    {Conv2dAlgorithm::kChannels, "channels", channels_computes, channels_wins},
    {Conv2dAlgorithm::kPlanes, "planes", planes_computes, planes_wins},
    {Conv2dAlgorithm::kDirect, "direct", direct_computes, direct_wins_there},
    {Conv2dAlgorithm::kImplicitGemm, "implicit_gemm", cuda_implicit_computes, never},
    {Conv2dAlgorithm::kAten, "aten", always, always},
};

bool is_candidate(const Row& row, const Conv2dShape& shape, Conv2dPass pass) {
  return (!row.rounds || winograd_allowed()) && row.computes(shape, pass);
}

Conv2dAlgorithm from_table(const Conv2dShape& shape, Conv2dPass pass) {
  for (const Row& row : kTable) {
    if (is_candidate(row, shape, pass) && row.wins(shape, pass)) return row.algorithm;
  }
  return Conv2dAlgorithm::kAten;
}

const Row* row_named(std::string_view name) {
  const auto* row =
      std::find_if(std::begin(kTable), std::end(kTable), [&](const Row& r) { return name == r.name; });
  return row != std::end(kTable) ? row : nullptr;
}

const Row& row_of(Conv2dAlgorithm algorithm) {
  return *std::find_if(std::begin(kTable), std::end(kTable),
                       [&](const Row& row) { return row.algorithm == algorithm; });
}

}  // namespace

std::string_view requested_conv2d_algorithm(std::string_view requested, Conv2dPass pass) {
  if (std::count(requested.begin(), requested.end(), '/') != 2) return requested;
  for (int i = 0; i < static_cast<int>(pass); ++i) requested.remove_prefix(requested.find('/') + 1);
  return requested.substr(0, requested.find('/'));
}

bool conv2d_is_candidate(Conv2dAlgorithm algorithm, const Conv2dShape& shape, Conv2dPass pass) {
  return is_candidate(row_of(algorithm), shape, pass);
}

std::vector<Conv2dAlgorithm> conv2d_candidates(const Conv2dShape& shape, Conv2dPass pass) {
  std::vector<Conv2dAlgorithm> found;
  for (const Row& row : kTable) {
    if (is_candidate(row, shape, pass)) found.push_back(row.algorithm);
  }
  return found;
}

Conv2dAlgorithm choose_conv2d_algorithm(const Conv2dShape& shape, Conv2dPass pass,
                                        std::string_view requested) {
  requested = requested_conv2d_algorithm(requested, pass);
  if (requested == "auto") {
    const auto tuned = tuned_conv2d_algorithm(shape, pass);
    return tuned ? *tuned : from_table(shape, pass);
  }
  if (const Row* row = row_named(requested)) {
    return row->computes(shape, pass) ? row->algorithm : from_table(shape, pass);
  }
  std::string names = "'auto'";
  for (const Row& row : kTable) names += std::string(", '") + row.name + "'";
  TORCH_CHECK_VALUE(false, "algorithm must be one of ", names, ", or three of them as 'forward/grad_input/",
                    "grad_weight', but got '", requested, "'");
}

bool winograd_allowed() { return allowed.load(std::memory_order_relaxed); }
void allow_winograd(bool value) { allowed = value; }

const char* conv2d_algorithm_name(Conv2dAlgorithm algorithm) { return row_of(algorithm).name; }

std::optional<Conv2dAlgorithm> conv2d_algorithm_named(std::string_view name) {
  const Row* row = row_named(name);
  return row != nullptr ? std::optional(row->algorithm) : std::nullopt;
}

std::vector<std::string> conv2d_algorithm_names() {
  std::vector<std::string> names;
  for (const Row& row : kTable) names.emplace_back(row.name);
  return names;
}

}  // namespace d2lfast::ops
