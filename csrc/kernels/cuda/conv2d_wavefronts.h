#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

// Wavefronts of shared memory in which the lanes of a warp read quads, four for each of several pixels. As
// many lanes as quads have banks to begin in are read at once: of several quads in a bank one after another.
namespace d2lfast::cuda {

// What the first steps need, over the least. quad(i): where the i-th of a pixel lies from its first, in
// quads; pixel(g): where a lane's pixel lies.
template <int kBanks, typename Quad, typename Pixel>
double wavefronts(int64_t quads, Quad&& quad, Pixel&& pixel) {
  constexpr int64_t kSome = 12;
  const int64_t steps = std::min((quads + 3) / 4, kSome);
  int64_t needed = 0;
  for (int64_t step = 0; step < steps; ++step) {
    std::array<int64_t, kBanks> met{};
    std::array<int, kBanks> depth{};
    int most = 1;
    for (int lane = 0; lane < kBanks; ++lane) {
      const int64_t i = 4 * step + lane % 4;
      met[lane] = pixel(lane / 4) + (i < quads ? quad(i) : 0);
      if (std::find(met.begin(), met.begin() + lane, met[lane]) != met.begin() + lane) continue;
      most = std::max(most, ++depth[met[lane] % kBanks]);
    }
    needed += most;
  }
  return double(needed) / double(steps);
}

// The same for each remainder, by the banks, of what lies between rows and between copies of rows.
template <int kBanks>
struct WavefrontTable {
  static constexpr int kCopies = 8;
  double of[2][kBanks][kCopies];  // first for columns side by side, then in fours

  // quad(i, row, copy) and pixel(column, copy): of rows and copies so far apart.
  template <typename Quad, typename Pixel>
  void fill(int64_t quads, int64_t rows, int64_t copies, Quad&& quad, Pixel&& pixel) {
    constexpr int64_t kApart = 1 << 10, kFarApart = 1 << 20;  // so that no two rows or copies are one
    for (int64_t i = 0; i < 2 * rows * copies; ++i) {
      const int64_t row = i / 2 % rows, copy = i / 2 / rows;
      of[i % 2][row][copy] = wavefronts<kBanks>(
          quads, [&](int64_t q) { return quad(q, kApart + row, kFarApart + copy); },
          [&](int64_t g) { return pixel(i % 2 == 1 ? g / 2 * 4 + g % 2 : g, kFarApart + copy); });
    }
  }
};

}  // namespace d2lfast::cuda
