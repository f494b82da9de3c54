#include <ATen/Parallel.h>

#include <algorithm>

#include "../../kernels/conv2d_gemm.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "conv2d_passes.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(Conv2dGemmKernels, conv2d_gemm_kernels);

namespace d2lfast::ops {

namespace {

const Conv2dGemmKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_gemm_kernels); }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

GemmImages images_of(const at::Tensor& data, const at::Tensor* activated, Activation activation) {
  return {data.const_data_ptr(),
          activated != nullptr ? activated->const_data_ptr() : nullptr,
          activation,
          data.size(0),
          data.size(1),
          data.size(2) * data.size(3)};
}

// Every stride-th pixel of the images: what a strided 1x1 kernel meets. A view where the stride is 1.
at::Tensor met_pixels(const at::Tensor& images, const Conv2dShape& s) {
  return images.slice(2, 0, images.size(2), s.stride[0]).slice(3, 0, images.size(3), s.stride[1]);
}

// Columns of a work item, whose sums and packed sources should stay in the second-level cache beside what is
// fetched for the next: several whole images, or a part of one in whole panels; whichever gives the busiest
// thread the fewest panels. The results do not depend on it.
int64_t columns_of_item(int64_t batch, int64_t pixels, int64_t panel, int64_t column_bytes, bool in_place) {
  constexpr int64_t kImagesBytes = 832 << 10, kRunBytes = 200 << 10, kMostPanels = 4, kMostImages = 8,
                    kMostPixels = 448;
  const int64_t threads = at::get_num_threads(), panels = divide_up(pixels, panel);
  int64_t best = panel;
  double best_cost = 1e30;
  const auto consider = [&](int64_t columns, double cost) {
    if (cost <= best_cost) best = columns, best_cost = cost;
  };
  const int64_t most = std::clamp<int64_t>(kRunBytes / column_bytes / panel, 1, kMostPanels);
  for (int64_t n = 1; n <= most && n < panels; ++n) {
    // A tenth of a panel's time for beginning an item; half an item is waited for at the end.
    const auto of_thread = static_cast<double>(divide_up(batch * panels, threads));
    const auto item = static_cast<double>(n);
    consider(n * panel, of_thread * (1 + 0.1 / item) + item / 2);
  }
  for (int64_t n = 1; n <= std::min(batch, kImagesBytes / (pixels * column_bytes)); ++n) {
    consider(n * pixels,
             static_cast<double>(divide_up(divide_up(batch, n), threads) * divide_up(n * pixels, panel)));
  }
  if (!in_place || pixels < kGemmPanelsInPlace * panel || pixels > kMostPixels) return best;
  for (int64_t n = 1; n <= std::min(batch, kMostImages); ++n) {
    // What is left of the images beside their whole panels is computed together, by vectors.
    const int64_t vectors = n * (pixels / panel) * 2 + divide_up(n * (pixels % panel) * 2, panel);
    const auto of_thread = static_cast<double>(divide_up(divide_up(batch, n), threads) * vectors) / 2;
    if (of_thread < best_cost) consider(n * pixels, of_thread);
  }
  return best;
}

// result [N,M,P] = weight x source; `transposed`: with the weight's columns as rows.
void product(const Conv2dShape& shape, const GemmImages& source, const at::Tensor& weight, bool transposed,
             const at::Tensor* bias, const at::Tensor* residual, Activation activation, at::Tensor& result) {
  constexpr int64_t kDepth = 256;
  const Conv2dGemmKernels& table = kernels();
  const int dtype = static_cast<int>(shape.dtype);
  const int64_t element = accumulator_size(shape.dtype);
  const at::Tensor packed =
      empty({weight.numel()}, weight.options().dtype(accumulator_type(weight.scalar_type())));
  Conv2dGemmParams params{};
  params.source = source;
  params.weight = weight.const_data_ptr();
  params.weight_result = weight.stride(transposed ? 1 : 0);
  params.weight_source = weight.stride(transposed ? 0 : 1);
  params.weight_size = (weight.size(0) - 1) * weight.stride(0) + (weight.size(1) - 1) * weight.stride(1) + 1;
  params.packed = packed.mutable_data_ptr();
  params.bias = bias != nullptr ? bias->const_data_ptr() : nullptr;
  params.residual = residual != nullptr ? residual->const_data_ptr() : nullptr;
  params.activation = activation;
  params.result = result.mutable_data_ptr();
  params.result_channels = result.size(1);
  params.depth = kDepth;
  const int64_t row_block = table.rows * source.channels;
  at::parallel_for(0, divide_up(params.result_channels, table.rows),
                   std::max<int64_t>(1, (1 << 15) / row_block),
                   [&](int64_t begin, int64_t end) { table.pack[dtype](params, begin, end); });

  const int64_t pixels = source.pixels, all = source.batch * pixels, panel = table.columns[dtype];
  const int64_t height = params.result_channels + std::min(kDepth, source.channels);
  const bool in_place =
      source.activated == nullptr && activation <= Activation::kReLU && result.element_size() == element;
  const int64_t columns = columns_of_item(source.batch, pixels, panel, height * element, in_place);
  const int64_t runs_of_image = divide_up(pixels, columns);
  const int64_t items = pixels <= columns ? divide_up(all, columns) : source.batch * runs_of_image;
  const int64_t scratch = height * divide_up(columns, panel) * panel * element;
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / (weight.numel() * columns));
  at::parallel_for(0, items, grain, [&](int64_t first, int64_t last) {
    void* memory = thread_scratch(scratch);
    const auto begin_of = [&](int64_t i) {
      if (pixels <= columns) return std::min(i * columns, all);
      return i / runs_of_image * pixels + i % runs_of_image * columns;
    };
    for (int64_t i = first; i < last; ++i) {
      table.product[dtype](params, begin_of(i), begin_of(i + 1), begin_of(i + 1 < last ? i + 2 : i + 1),
                           memory);
    }
  });
}

}  // namespace

bool gemm_forward(const Conv2dForward& pass) {
  const at::Tensor source = met_pixels(pass.input, pass.shape).contiguous();
  const at::Tensor bias = pass.bias != nullptr ? pass.bias->contiguous() : at::Tensor();
  product(pass.shape, images_of(source, nullptr, Activation::kNone), pass.weight, false,
          bias.defined() ? &bias : nullptr, pass.residual, pass.activation, pass.output);
  return true;
}

bool gemm_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  const at::Tensor grad = pass.grad_output.contiguous();
  const at::Tensor output = pass.output != nullptr ? pass.output->contiguous() : at::Tensor();
  const GemmImages source = images_of(grad, output.defined() ? &output : nullptr, pass.activation);
  if (s.stride[0] == 1 && s.stride[1] == 1) {
    product(s, source, pass.weight, true, nullptr, nullptr, Activation::kNone, grad_input);
    return true;
  }
  at::Tensor met = empty({s.batch, s.channels, s.result_height(), s.result_width()}, grad.options());
  product(s, source, pass.weight, true, nullptr, nullptr, Activation::kNone, met);
  grad_input.zero_();
  met_pixels(grad_input, s).copy_(met);
  return true;
}

bool gemm_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  constexpr int64_t kBlock = 256, kPanels = 4, kMostChunks = 16, kChunkElements = 8 << 20;
  const Conv2dShape& s = pass.shape;
  if (grad_weight == nullptr || pass.grad_output.numel() == 0 || pass.weight.numel() == 0) return false;
  const Conv2dGemmKernels& table = kernels();
  const int dtype = static_cast<int>(s.dtype);
  const int64_t element = accumulator_size(s.dtype);
  const at::Tensor source = met_pixels(pass.input, s).contiguous(), grad = pass.grad_output.contiguous();
  const at::Tensor output = pass.output != nullptr ? pass.output->contiguous() : at::Tensor();
  Conv2dGemmWeightParams params{};
  params.source = images_of(source, nullptr, Activation::kNone);
  params.gradient = images_of(grad, output.defined() ? &output : nullptr, pass.activation);
  const int64_t pixels = params.source.pixels, columns = table.columns[dtype], lanes = columns / 2;
  params.block = divide_up(pixels, divide_up(pixels, kBlock));
  params.block = divide_up(params.block, lanes) * lanes;
  const int64_t steps = s.batch * divide_up(pixels, params.block);
  const int64_t panels = divide_up(s.channels, columns);
  params.panels = std::min(kPanels, panels);
  const int64_t groups = divide_up(panels, params.panels);
  // The chunks of the sum depend on the shape alone, so that the threads do not change a bit.
  const int64_t size = panels * columns * s.result_channels;
  const int64_t chunks =
      std::clamp<int64_t>(std::min({steps, kMostChunks / groups, kChunkElements / size}), 1, kMostChunks);
  const auto options = pass.weight.options().dtype(accumulator_type(pass.weight.scalar_type()));
  at::Tensor sums = empty({chunks, panels, s.result_channels, columns}, options);
  at::Tensor bias_sums = grad_bias != nullptr ? empty({chunks, s.result_channels}, options) : at::Tensor();
  const int64_t scratch = (params.panels * columns + s.result_channels) * (params.block + lanes) * element;
  at::parallel_for(0, chunks * groups, 1, [&](int64_t begin, int64_t end) {
    void* memory = thread_scratch(scratch);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t chunk = i / groups, panel = i % groups * params.panels;
      char* to = static_cast<char*>(sums.mutable_data_ptr()) +
                 (chunk * panels + panel) * s.result_channels * columns * element;
      char* bias = grad_bias != nullptr && panel == 0 ? static_cast<char*>(bias_sums.mutable_data_ptr()) +
                                                            chunk * s.result_channels * element
                                                      : nullptr;
      table.weight[dtype](params, panel, steps * chunk / chunks, steps * (chunk + 1) / chunks, to, bias,
                          memory);
    }
  });
  at::Tensor total = chunks > 1 ? sums.sum(0) : sums.select(0, 0);
  total = total.permute({1, 0, 2}).reshape({s.result_channels, panels * columns}).narrow(1, 0, s.channels);
  *grad_weight = empty_like(pass.weight);
  grad_weight->copy_(total.unsqueeze(2).unsqueeze(3));
  if (grad_bias != nullptr) *grad_bias = bias_sums.sum(0).to(pass.weight.scalar_type());
  return true;
}

}  // namespace d2lfast::ops
