#include "conv2d_plan.h"

#include <algorithm>

namespace d2lfast::ops {

namespace {

int64_t phase_index(const std::vector<int64_t>& phases, int64_t phase) {
  return std::find(phases.begin(), phases.end(), phase) - phases.begin();
}

}  // namespace

Axis forward_axis(int64_t result, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  Axis axis{padding, stride, 0, result, {}, {{}}, {result}};
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t phase = k * dilation % stride;
    if (phase_index(axis.phases, phase) == static_cast<int64_t>(axis.phases.size())) {
      axis.phases.push_back(phase);
    }
    axis.taps[0].push_back({k, phase_index(axis.phases, phase), k * dilation / stride});
    axis.reach = std::max(axis.reach, k * dilation / stride);
  }
  return axis;
}

Axis gradient_axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  Axis axis{0, 1, 0, (size + stride - 1) / stride, {0}, {}, {}};
  int64_t least = INT64_MAX, most = INT64_MIN;
  for (int64_t residue = 0; residue < stride; ++residue) {
    axis.size.push_back(std::max<int64_t>(0, (size - residue + stride - 1) / stride));
    auto& taps = axis.taps.emplace_back();
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t distance = residue + padding - k * dilation;
      if (distance % stride != 0) continue;
      taps.push_back({k, 0, distance / stride});
      least = std::min(least, distance / stride);
      most = std::max(most, distance / stride);
    }
  }
  if (least > most) least = most = 0;
  for (auto& taps : axis.taps) {
    for (auto& tap : taps) tap.offset -= least;
  }
  axis.pad = -least;
  axis.reach = most - least;
  return axis;
}

FlatGrid::FlatGrid(const Axis& rows, const Axis& cols, int64_t band_rows, int64_t slack, int64_t weight_h,
                   int64_t weight_w)
    : grid_rows(band_rows + rows.reach), grid_width(cols.extent + cols.reach) {
  for (const int64_t row : rows.phases) {
    for (const int64_t col : cols.phases) {
      phase_row.push_back(row);
      phase_col.push_back(col);
    }
  }
  // An odd number of cache lines between channels: planes at a power of two would share cache sets.
  constexpr int64_t kLine = 16;
  const int64_t used = static_cast<int64_t>(phase_row.size()) * grid_rows * grid_width + slack + cols.reach;
  channel_stride = ((used + kLine - 1) / kLine | 1) * kLine;
  const int64_t col_phases = static_cast<int64_t>(cols.phases.size());
  for (const auto& row_taps : rows.taps) {
    for (const auto& col_taps : cols.taps) {
      auto& offset = tap_offset.emplace_back();
      auto& weight = tap_weight.emplace_back();
      for (const auto& r : row_taps) {
        for (const auto& c : col_taps) {
          const int64_t phase = r.phase * col_phases + c.phase;
          offset.push_back((phase * grid_rows + r.offset) * grid_width + c.offset);
          weight.push_back(r.kernel * weight_h + c.kernel * weight_w);
        }
      }
    }
  }
}

void FlatGrid::describe(Conv2dSource& source, const Axis& rows, const Axis& cols) const {
  source.pad_top = rows.pad;
  source.pad_left = cols.pad;
  source.step_h = rows.step;
  source.step_w = cols.step;
  source.phases = static_cast<int64_t>(phase_row.size());
  source.phase_row = phase_row.data();
  source.phase_col = phase_col.data();
  source.grid_rows = grid_rows;
  source.grid_width = grid_width;
  source.phase_stride = grid_rows * grid_width;
  source.channel_stride = channel_stride;
}

int64_t choose_band_rows(const Axis& rows, const Axis& cols, int64_t channels, int64_t element_size,
                         int64_t items, int64_t threads) {
  constexpr int64_t kCacheBytes = 384 << 10, kLeastRows = 4;
  const int64_t phases = static_cast<int64_t>(rows.phases.size() * cols.phases.size());
  const int64_t row_bytes =
      std::max<int64_t>(1, channels * phases * (cols.extent + cols.reach) * element_size);
  int64_t band = std::max(kLeastRows, kCacheBytes / row_bytes - rows.reach);
  if (items < 2 * threads) {
    const int64_t bands = (2 * threads + items - 1) / std::max<int64_t>(1, items);
    band = std::min(band, (rows.extent + bands - 1) / bands);
  }
  band = std::clamp<int64_t>(band, 1, std::max<int64_t>(1, rows.extent));
  // Bands of equal height.
  const int64_t bands = (rows.extent + band - 1) / band;
  return std::max<int64_t>(1, (rows.extent + bands - 1) / std::max<int64_t>(1, bands));
}

}  // namespace d2lfast::ops
