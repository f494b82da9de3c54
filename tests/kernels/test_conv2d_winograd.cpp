#include <algorithm>
#include <cmath>

#include "../../csrc/kernels/conv2d_winograd.h"
#include "support.h"

D2LFAST_DECLARE_TABLES(WinogradKernels, conv2d_winograd_kernels);
D2LFAST_DECLARE_TABLES(WinogradKernels, conv2d_winograd_2x2_kernels);

namespace d2lfast::test {
namespace {

// Where a group's channels lie among those of a tensor.
struct Place {
  int64_t first, behind;
  int64_t all(int64_t channels) const { return first + channels + behind; }
};

struct Problem {
  DType dtype;
  Image input, output;
  bool weight_channels_last, bias, residual;
  int64_t padding[2];
  int64_t chunk, split;  // tiles of a strip, strips of a call
  Place of_input, of_output;
  Activation activation;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

WinogradImages images_of(const Image& shape, const Buffer& data, const Buffer* activated,
                         Activation activation, const Place& place = {}) {
  return {data.data(), activated != nullptr ? activated->data() : nullptr,
          activation,  shape.channels_last,
          shape.n,     shape.c,
          shape.h,     shape.w,
          place.first, place.all(shape.c)};
}

// An image among other channels, which are NaN; or back.
void place(const Image& shape, const Place& place, bool back, Buffer& image, Buffer& among) {
  Image whole = shape;
  whole.c = place.all(shape.c);
  for (int64_t n = 0; n < shape.n; ++n) {
    for (int64_t c = 0; c < whole.c; ++c) {
      const bool ours = c >= place.first && c < place.first + shape.c;
      for (int64_t i = 0; i < shape.h * shape.w; ++i) {
        const int64_t there = whole.at(n, c, i / shape.w, i % shape.w);
        if (!ours) {
          expect(std::isnan(among.get(there)), "winograd: another group's channel is written");
          continue;
        }
        const int64_t here = shape.at(n, c - place.first, i / shape.w, i % shape.w);
        if (back) {
          image.set(here, among.get(there));
        } else {
          among.set(there, image.get(here));
        }
      }
    }
  }
}

struct Placed {
  Buffer data;
  Placed(DType dtype, const Image& shape, const Place& where)
      : data(dtype, shape.n * where.all(shape.c) * shape.h * shape.w) {}
  Placed(const Image& shape, const Place& where, Buffer& image) : Placed(image.dtype(), shape, where) {
    place(shape, where, false, image, data);
  }
};

WinogradStrips strips_of(const WinogradKernels& table, const Problem& p, int64_t height, int64_t width) {
  WinogradStrips s{divide_up(height, table.tile), divide_up(width, table.tile), 0, 0};
  s.chunk = std::min(p.chunk, s.tile_cols);
  s.chunks = divide_up(s.tile_cols, s.chunk);
  return s;
}

int64_t weight_at(const Problem& p, int64_t k, int64_t c, int64_t tap) {
  return p.weight_channels_last ? (k * 9 + tap) * p.input.c + c : (k * p.input.c + c) * 9 + tap;
}

WinogradTiles tiles_in(Buffer& memory, int64_t blocks, int64_t tiles, int64_t lanes) {
  return {static_cast<float*>(memory.data()), tiles, blocks * tiles * lanes};
}

float* floats(Buffer& buffer) { return static_cast<float*>(buffer.data()); }

// Forward (transposed: the data gradient) with buffers of exact size.
void run_filter(const WinogradKernels& table, const Problem& p, const WinogradImages& images, int64_t pad_top,
                int64_t pad_left, const Buffer& weight, bool transposed, const Buffer* bias,
                const Buffer* residual, Activation activation, const Image& shape, const Place& place,
                Buffer& result) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t lanes = table.lanes, blocks = divide_up(images.channels, lanes);
  const WinogradStrips strips = strips_of(table, p, shape.h, shape.w);
  const int64_t count = shape.n * strips.tile_rows * strips.chunks;
  const WinogradSource source{images, strips, pad_top, pad_left};
  const int64_t in = p.weight_channels_last ? 1 : 9, out = 9 * p.input.c;
  const WinogradWeight filters{weight.data(),
                               shape.c,
                               images.channels,
                               transposed ? in : out,
                               transposed ? out : in,
                               p.weight_channels_last ? 3 * p.input.c : 3,
                               p.weight_channels_last ? p.input.c : 1,
                               weight.size(),
                               transposed};
  const WinogradResult to{result.data(),
                          shape.channels_last,
                          shape.c,
                          shape.h,
                          shape.w,
                          place.first,
                          place.all(shape.c),
                          strips,
                          blocks,
                          bias != nullptr ? bias->data() : nullptr,
                          residual != nullptr ? residual->data() : nullptr,
                          activation};
  Buffer memory(DType::kFloat32, table.planes * blocks * count * strips.chunk * lanes);
  const WinogradTiles tiles = tiles_in(memory, blocks, count * strips.chunk, lanes);
  Buffer staging(DType::kFloat32, winograd_staging(lanes, strips.chunk));
  for (int64_t begin = 0; begin < count; begin += p.split) {
    table.source[dtype](source, begin, std::min(begin + p.split, count), 0, blocks, tiles,
                        begin * strips.chunk, floats(staging));
  }
  Buffer packed(DType::kFloat32, table.planes * winograd_filter_plane(lanes, blocks));
  for (int64_t b = 0; b < divide_up(shape.c, 2 * lanes); ++b) {
    table.weight[dtype](filters, b, floats(packed), floats(staging));
    for (int64_t begin = 0; begin < count; begin += p.split) {
      const int64_t end = std::min(begin + p.split, count);
      Buffer products(DType::kFloat32, table.planes * ((end - begin) * strips.chunk * 2 * lanes + 16));
      expect(table.result[dtype](to, begin, end, b, tiles, begin * strips.chunk, floats(packed),
                                 floats(products), floats(staging)),
             "winograd: finite results are reported as not finite");
    }
  }
}

void run_weight(const WinogradKernels& table, const Problem& p, const Buffer& input, const Buffer& grad,
                const Buffer* output, Buffer& grad_weight, Buffer& grad_bias) {
  const int dtype = static_cast<int>(p.dtype);
  const int64_t lanes = table.lanes, blocks = divide_up(p.input.c, lanes);
  const int64_t result_blocks = divide_up(p.output.c, 2 * lanes), gradient_blocks = 2 * result_blocks;
  const WinogradStrips strips = strips_of(table, p, p.output.h, p.output.w);
  const int64_t count = p.output.n * strips.tile_rows * strips.chunks;
  const WinogradSource source{images_of(p.input, input, nullptr, Activation::kNone, p.of_input), strips,
                              p.padding[0], p.padding[1]};
  const WinogradSource gradient{images_of(p.output, grad, output, p.activation, p.of_output), strips, 0, 0};
  const int64_t set = std::max(p.split, divide_up(count, 2));
  Buffer staging(DType::kFloat32, winograd_staging(lanes, strips.chunk));
  Buffer sums(DType::kFloat32, gradient_blocks * lanes);
  sums.fill(0);
  Buffer products(DType::kFloat32, result_blocks * table.planes * blocks * lanes * 2 * lanes);
  for (int64_t first = 0; first < count; first += set) {
    const int64_t strips_now = std::min(set, count - first), tiles = strips_now * strips.chunk;
    Buffer source_memory(DType::kFloat32, table.planes * blocks * tiles * lanes);
    Buffer gradient_memory(DType::kFloat32, table.planes * gradient_blocks * tiles * lanes);
    const WinogradTiles source_tiles = tiles_in(source_memory, blocks, tiles, lanes);
    const WinogradTiles gradient_tiles = tiles_in(gradient_memory, gradient_blocks, tiles, lanes);
    table.source[dtype](source, first, first + strips_now, 0, blocks, source_tiles, 0, floats(staging));
    table.gradient[dtype](gradient, first, first + strips_now, 0, gradient_blocks, gradient_tiles, 0,
                          floats(staging), floats(sums));
    for (int64_t b = 0; b < result_blocks; ++b) {
      table.products(source_tiles, gradient_tiles, 0, blocks, b, first > 0,
                     floats(products) + b * table.planes * blocks * lanes * 2 * lanes);
    }
  }
  const WinogradGradWeight to{grad_weight.data(), p.weight_channels_last, p.output.c, p.input.c};
  for (int64_t b = 0; b < result_blocks; ++b) {
    expect(table.grad_weight[dtype](to, 0, blocks, b,
                                    floats(products) + b * table.planes * blocks * lanes * 2 * lanes,
                                    floats(staging)),
           "winograd: finite gradients are reported as not finite");
  }
  for (int64_t k = 0; k < p.output.c; ++k) grad_bias.set(k, sums.get(k));
}

struct Expected {
  std::vector<double> output, grad_input, grad_weight, grad_bias;
};

Expected naive(const Problem& p, const Buffer& input, const Buffer& weight, const Buffer& bias,
               const Buffer& residual, const Buffer& grad, const Buffer* output_of) {
  Expected e{std::vector<double>(static_cast<size_t>(p.output.size())),
             std::vector<double>(static_cast<size_t>(p.input.size())),
             std::vector<double>(static_cast<size_t>(weight.size())),
             std::vector<double>(static_cast<size_t>(p.output.c))};
  for (int64_t n = 0; n < p.output.n; ++n) {
    for (int64_t k = 0; k < p.output.c; ++k) {
      for (int64_t y = 0; y < p.output.h; ++y) {
        for (int64_t x = 0; x < p.output.w; ++x) {
          const int64_t at = p.output.at(n, k, y, x);
          double sum = (p.bias ? bias.get(k) : 0) + (p.residual ? residual.get(at) : 0);
          const double g =
              grad.get(at) *
              (output_of != nullptr ? activation_derivative(p.activation, output_of->get(at)) : 1);
          e.grad_bias[static_cast<size_t>(k)] += g;
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t h = y - p.padding[0] + tap / 3, w = x - p.padding[1] + tap % 3;
            if (h < 0 || h >= p.input.h || w < 0 || w >= p.input.w) continue;
            for (int64_t c = 0; c < p.input.c; ++c) {
              const int64_t from = p.input.at(n, c, h, w), filter = weight_at(p, k, c, tap);
              sum += input.get(from) * weight.get(filter);
              e.grad_input[static_cast<size_t>(from)] += g * weight.get(filter);
              e.grad_weight[static_cast<size_t>(filter)] += g * input.get(from);
            }
          }
          e.output[static_cast<size_t>(at)] = activated(p.activation, sum);
        }
      }
    }
  }
  return e;
}

Problem draw(Random& random) {
  for (;;) {
    Problem p{};
    p.dtype = static_cast<DType>(random.between(1, 3));
    for (int64_t& padding : p.padding) padding = random.chance(60) ? 1 : random.between(0, 4);
    p.input = {random.between(1, 3), random.chance(20) ? random.between(10, 40) : random.between(1, 9),
               random.between(1, 14), random.between(1, 30), random.chance(40)};
    const int64_t h = p.input.h + 2 * p.padding[0] - 2, w = p.input.w + 2 * p.padding[1] - 2;
    if (h < 1 || w < 1) continue;
    p.output = {p.input.n, random.chance(20) ? random.between(10, 40) : random.between(1, 9), h, w,
                random.chance(10) ? !p.input.channels_last : p.input.channels_last};
    p.weight_channels_last = random.chance(40);
    p.bias = random.chance(60);
    p.residual = random.chance(40);
    p.chunk = random.chance(70) ? 64 : random.between(1, 3);
    p.split = random.between(1, 9);
    p.activation = static_cast<Activation>(random.chance(50) ? 0 : random.between(1, 3));
    if (random.chance(30)) {
      for (Place* place : {&p.of_input, &p.of_output})
        *place = {random.between(0, 20), random.between(0, 20)};
    }
    return p;
  }
}

std::string describe(const Problem& p, int64_t number) {
  char text[240];
  std::snprintf(text, sizeof(text),
                "winograd case %lld %s input %lldx%lldx%lldx%lld output %lldx%lldx%lld%s padding %lld,%lld "
                "activation %d chunk %lld split %lld",
                (long long)number, name_of(p.dtype), (long long)p.input.n, (long long)p.input.c,
                (long long)p.input.h, (long long)p.input.w, (long long)p.output.c, (long long)p.output.h,
                (long long)p.output.w, p.input.channels_last ? " channels_last" : "", (long long)p.padding[0],
                (long long)p.padding[1], static_cast<int>(p.activation), (long long)p.chunk,
                (long long)p.split);
  return text;
}

// The pieces of random kernels and strides, element by element.
void check_pieces(const WinogradKernels& table, Random& random, const std::string& what) {
  const auto dtype = static_cast<DType>(random.between(1, 3));
  const Image image = {random.between(1, 2), random.between(1, 20), random.between(1, 14),
                       random.between(1, 40), random.chance(50)};
  WinogradPieces p{};
  Buffer source(dtype, image.size());
  source.randomise(random);
  p.images = images_of(image, source, nullptr, Activation::kNone);
  std::vector<int64_t> offset[2];
  for (int axis = 0; axis < 2; ++axis) {
    p.stride[axis] = random.between(1, 5);
    p.pad[axis] = random.between(-3, 9);
    const int64_t kernel = random.between(1, 13);
    for (int64_t k = 0; k < kernel; ++k) {
      if (k / p.stride[axis] % 3 == 0) offset[axis].push_back(k);
    }
    p.count[axis] = static_cast<int64_t>(offset[axis].size());
    p.offset[axis] = offset[axis].data();
  }
  p.height = random.between(1, 9);
  p.width = random.between(1, 40);
  const int64_t pieces = p.count[0] * p.count[1], channels = image.c * pieces;
  const Image to = {image.n, channels, p.height, p.width, image.channels_last};
  Buffer result(dtype, to.size());
  p.result = result.data();
  const int64_t items = image.n * (image.channels_last ? p.height : image.c), half = items / 2;
  table.pieces[static_cast<int>(dtype)](p, 0, half);
  table.pieces[static_cast<int>(dtype)](p, half, items);
  bool equal = true;
  for (int64_t n = 0; n < image.n; ++n) {
    for (int64_t c = 0; c < image.c; ++c) {
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t channel = image.channels_last ? piece * image.c + c : c * pieces + piece;
        for (int64_t at = 0; at < p.height * p.width; ++at) {
          const int64_t y = at / p.width, x = at % p.width;
          const int64_t h = p.stride[0] * y + p.offset[0][piece / p.count[1]] - p.pad[0];
          const int64_t w = p.stride[1] * x + p.offset[1][piece % p.count[1]] - p.pad[1];
          const bool inside = h >= 0 && h < image.h && w >= 0 && w < image.w;
          equal = equal &&
                  result.get(to.at(n, channel, y, x)) == (inside ? source.get(image.at(n, c, h, w)) : 0.0);
        }
      }
    }
  }
  expect(equal, what + ": pieces");
}

void test_tables(const Tables<WinogradKernels>& all, int cases) {
  for (int number = 0; number < cases; ++number) {
    Random random(static_cast<uint64_t>(number));
    const Problem p = draw(random);
    Buffer input(p.dtype, p.input.size()), weight(p.dtype, p.output.c * p.input.c * 9);
    Buffer bias(p.dtype, p.output.c), grad(p.dtype, p.output.size()), residual(p.dtype, p.output.size());
    for (Buffer* buffer : {&input, &weight, &bias, &grad, &residual}) buffer->randomise(random);
    const Placed all_input(p.input, p.of_input, input), all_grad(p.output, p.of_output, grad);
    const Placed all_residual(p.output, p.of_output, residual);
    const Placed all_bias({1, p.output.c, 1, 1, false}, p.of_output, bias);
    for (int isa = 0; isa < all.count; ++isa) {
      const std::string what = std::string(all.name(isa)) + " " + describe(p, number);
      Random same(static_cast<uint64_t>(number) + 1000000);
      if (all.table[isa]->pieces[static_cast<int>(p.dtype)] != nullptr) {
        check_pieces(*all.table[isa], same, what);
      }
      Buffer output(p.dtype, p.output.size()), grad_input(p.dtype, p.input.size());
      Buffer grad_weight(p.dtype, weight.size()), grad_bias(p.dtype, p.output.c);
      Placed all_output(p.dtype, p.output, p.of_output), all_grad_input(p.dtype, p.input, p.of_input);
      run_filter(
          *all.table[isa], p, images_of(p.input, all_input.data, nullptr, Activation::kNone, p.of_input),
          p.padding[0], p.padding[1], weight, false, p.bias ? &all_bias.data : nullptr,
          p.residual ? &all_residual.data : nullptr, p.activation, p.output, p.of_output, all_output.data);
      place(p.output, p.of_output, true, output, all_output.data);
      const bool derives = p.activation != Activation::kNone;
      const Buffer* derived = derives ? &output : nullptr;
      const Buffer* all_derived = derives ? &all_output.data : nullptr;
      run_filter(*all.table[isa], p,
                 images_of(p.output, all_grad.data, all_derived, p.activation, p.of_output), 2 - p.padding[0],
                 2 - p.padding[1], weight, true, nullptr, nullptr, Activation::kNone, p.input, p.of_input,
                 all_grad_input.data);
      place(p.input, p.of_input, true, grad_input, all_grad_input.data);
      run_weight(*all.table[isa], p, all_input.data, all_grad.data, all_derived, grad_weight, grad_bias);

      const Expected e = naive(p, input, weight, bias, residual, grad, derived);
      const int64_t pixels = p.output.n * p.output.h * p.output.w;
      // The transforms enlarge the rounding errors.
      const double magnitude = 4;
      expect_close(output, e.output, p.input.c * 9, magnitude, what + ": output");
      expect_close(grad_input, e.grad_input, p.output.c * 9, magnitude, what + ": gradient of the input");
      expect_close(grad_weight, e.grad_weight, pixels, magnitude, what + ": gradient of the weight");
      expect_close(grad_bias, e.grad_bias, pixels, 1, what + ": gradient of the bias");
    }
  }
}

}  // namespace

void test_conv2d_winograd(int cases) {
  test_tables(tables(cpu::baseline::conv2d_winograd_kernels, cpu::avx2::conv2d_winograd_kernels,
                     cpu::avx512::conv2d_winograd_kernels),
              cases);
  test_tables(tables(cpu::baseline::conv2d_winograd_2x2_kernels, cpu::avx2::conv2d_winograd_2x2_kernels,
                     cpu::avx512::conv2d_winograd_2x2_kernels),
              cases);
}

}  // namespace d2lfast::test
