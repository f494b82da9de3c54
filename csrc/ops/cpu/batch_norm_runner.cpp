#include "batch_norm_runner.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "../../kernels/cpu/isa.h"

D2LFAST_DECLARE_TABLES(BatchNormKernels, batch_norm_kernels);

namespace d2lfast::ops {

namespace {

constexpr int64_t kGrain = 16384;
constexpr int64_t kStreamBytes = int64_t{16} << 20;  // a result that the caches do not keep
constexpr int64_t kCacheLine = 64;

double finite_center(double sum, int64_t count) {
  const double center = sum / count;
  return std::isfinite(center) ? center : 0;
}

}  // namespace

int64_t BatchNormRunner::grain_of(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_item));
}

BatchNormRunner::BatchNormRunner(const BatchNormGeometry& geometry, DType dtype, int64_t element_size)
    : geometry(geometry),
      table(D2LFAST_SELECT_TABLE(batch_norm_kernels)),
      coefficients(dtype, geometry.channels, geometry.columns ? geometry.fold : 1),
      dtype_(static_cast<int>(dtype)),
      element_(element_size) {}

void BatchNormRunner::choose_stream() {
  const auto& g = geometry;
  const auto misaligned = [](int64_t bytes) { return bytes % kCacheLine != 0; };
  base.stream = g.count() * g.channels * element_ > kStreamBytes &&
                !misaligned((g.columns ? g.width : g.pixels) * element_) &&
                !misaligned(reinterpret_cast<int64_t>(base.result)) &&
                !misaligned(reinterpret_cast<int64_t>(base.grad_residual));
}

BatchNormParams BatchNormRunner::part(int64_t elements, int64_t mask_row, int64_t rows, int64_t columns,
                                      int64_t channel, bool reversed) const {
  BatchNormParams p = base;
  const int64_t row_step = geometry.columns ? 1 : geometry.channels;
  p.rows = rows;
  p.columns = columns;
  p.pitch = row_step * (geometry.columns ? geometry.width : geometry.pixels);
  p.mask_pitch = row_step * geometry.mask_pitch();
  if (reversed) {
    elements += (rows - 1) * p.pitch;
    mask_row += (rows - 1) * row_step;
    p.pitch = -p.pitch;
    p.mask_pitch = -p.mask_pitch;
  }
  const int64_t bytes = elements * element_;
  for (const void** pointer : {&p.input, &p.residual, &p.gradient, &p.activated}) {
    if (*pointer != nullptr) *pointer = static_cast<const char*>(*pointer) + bytes;
  }
  for (void** pointer : {&p.result, &p.grad_residual}) {
    if (*pointer != nullptr) *pointer = static_cast<char*>(*pointer) + bytes;
  }
  if (p.mask != nullptr) p.mask += mask_row * geometry.mask_pitch();
  p.center = coefficients.at(Coefficients::kCenter, channel);
  p.scale = coefficients.at(Coefficients::kScale, channel);
  p.shift = coefficients.at(Coefficients::kShift, channel);
  p.slope = batch_terms ? coefficients.at(Coefficients::kSlope, channel) : nullptr;
  p.offset = coefficients.at(Coefficients::kOffset, channel);
  return p;
}

BatchNormParams BatchNormRunner::planes(int64_t channel, bool reversed) const {
  return part(channel * geometry.pixels, channel, geometry.batch, geometry.pixels, channel, reversed);
}

BatchNormParams BatchNormRunner::image_planes(int64_t plane, int64_t count) const {
  BatchNormParams p = part(plane * geometry.pixels, plane, count, geometry.pixels, plane % geometry.channels);
  p.pitch = geometry.pixels;
  p.mask_pitch = geometry.mask_pitch();
  p.channel_step = 1;
  return p;
}

void BatchNormRunner::center_plane(int64_t channel) {
  double sums[2];
  BatchNormParams p = planes(channel);
  coefficients.set(Coefficients::kCenter, channel, 0);
  p.columns = std::min<int64_t>(geometry.pixels, 1024);
  p.rows = std::min<int64_t>(geometry.batch, 256 / p.columns + 1);
  p.sums = sums;
  run(table.plane_moments, p);
  coefficients.set(Coefficients::kCenter, channel, finite_center(sums[0], p.rows * p.columns));
}

void BatchNormRunner::center_columns() {
  const auto& g = geometry;
  for (int64_t c = 0; c < g.channels; ++c) coefficients.set(Coefficients::kCenter, c, 0);
  BatchNormParams p = matrix_rows(0, std::min<int64_t>(g.rows, 64), g.width);
  std::vector<double> sums(2 * g.width);
  p.sums = sums.data();
  run(table.column_moments, p);
  for (int64_t c = 0; c < g.channels; ++c) {
    double sum = 0;
    for (int64_t f = 0; f < g.fold; ++f) sum += sums[f * g.channels + c];
    coefficients.set(Coefficients::kCenter, c, finite_center(sum, p.rows * g.fold));
  }
}

void BatchNormRunner::run_rows(const BatchNormKernel* kernel, int64_t begin, int64_t end) const {
  const int64_t full = std::min(end, geometry.rows);
  if (full > begin) run(kernel, matrix_rows(begin, full - begin, geometry.width));
  if (end > geometry.rows && geometry.tail > 0) run(kernel, matrix_rows(geometry.rows, 1, geometry.tail));
}

// A chunk's sums, [2][width].
void BatchNormRunner::chunk_sums(const BatchNormKernel* kernel, int64_t begin, int64_t end,
                                 double* sums) const {
  const auto& g = geometry;
  BatchNormParams p = matrix_rows(begin, std::max<int64_t>(0, std::min(end, g.rows) - begin), g.width);
  p.sums = sums;
  run(kernel, p);
  if (end > g.rows && g.tail > 0) {
    std::vector<double> last(2 * g.tail);
    p = matrix_rows(g.rows, 1, g.tail);
    p.sums = last.data();
    run(kernel, p);
    for (int64_t i = 0; i < g.tail; ++i) {
      sums[i] += last[i];
      sums[g.width + i] += last[g.tail + i];
    }
  }
}

void BatchNormRunner::column_sums(const BatchNormKernel* kernel, ChannelValues& first,
                                  ChannelValues& second) const {
  const auto& g = geometry;
  const auto partial = std::make_unique_for_overwrite<double[]>(g.chunks * 2 * g.width);
  double* sums = partial.get();
  at::parallel_for(0, g.chunks, grain_of(g.chunk_rows * g.width), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t begin = i * g.chunk_rows, end = std::min(g.all_rows(), begin + g.chunk_rows);
      chunk_sums(kernel, begin, end, sums + i * 2 * g.width);
    }
  });
  // Added in the order of the chunks, whoever computed them.
  for (int64_t i = 1; i < g.chunks; ++i) {
    for (int64_t j = 0; j < 2 * g.width; ++j) sums[j] += sums[i * 2 * g.width + j];
  }
  for (int64_t f = 0; f < g.fold; ++f) {
    for (int64_t c = 0; c < g.channels; ++c) {
      first[c] += sums[f * g.channels + c];
      second[c] += sums[g.width + f * g.channels + c];
    }
  }
}

int64_t BatchNormRunner::channels_together() const {
  constexpr int64_t kCachedElements = 32768, kRunElements = 1024;
  const int64_t channels = kCachedElements / geometry.count();
  return channels * geometry.pixels >= kRunElements ? channels : 1;
}

void BatchNormRunner::channels_elementwise(const BatchNormKernel* kernel, int64_t channel,
                                           int64_t count) const {
  if (count == 1) return run(kernel, planes(channel, true));
  for (int64_t image = geometry.batch - 1; image >= 0; --image) {
    run(kernel, image_planes(image * geometry.channels + channel, count));
  }
}

void BatchNormRunner::elementwise(const BatchNormKernel* plane, const BatchNormKernel* column) const {
  const auto& g = geometry;
  if (g.columns) {
    at::parallel_for(0, g.chunks, grain_of(g.chunk_rows * g.width), [&](int64_t from, int64_t to) {
      for (int64_t i = to - 1; i >= from; --i) {
        const int64_t begin = i * g.chunk_rows;
        run_rows(column, begin, std::min(g.all_rows(), begin + g.chunk_rows));
      }
    });
  } else {
    at::parallel_for(0, g.batch * g.channels, grain_of(g.pixels), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to;) {
        const int64_t count = std::min(to - i, g.channels - i % g.channels);
        run(plane, image_planes(i, count));
        i += count;
      }
    });
  }
}

}  // namespace d2lfast::ops
