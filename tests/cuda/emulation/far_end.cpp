// Winograd's transforms and the recurrent kernels on tensors of more than 2^31 elements, of which memory is
// what is touched: what they compute at the far end is compared, bit for bit, with a small tensor's.

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../../csrc/kernels/cuda/conv2d_winograd.h"
#include "../../../csrc/kernels/cuda/recurrent.h"
#include "../../../csrc/kernels/cuda/recurrent_cluster.h"
#include "../../../csrc/kernels/cuda/recurrent_grid.h"
#include "../../../csrc/kernels/cuda/recurrent_layer.h"
#include "grid.h"

using namespace d2lfast;
using namespace d2lfast::cuda;

namespace {

// Zeros, between pages that cannot be touched: 8 GB or so before and after, for offsets that went wrong.
struct Memory {
  explicit Memory(int64_t count) : count(count) {
    bytes = count * sizeof(float);
    start = static_cast<unsigned char*>(
        mmap(nullptr, bytes + 2 * kFence, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (start == MAP_FAILED || mprotect(start + kFence, bytes, PROT_READ | PROT_WRITE) != 0) std::abort();
    data = reinterpret_cast<float*>(start + kFence);
  }
  ~Memory() { munmap(start, bytes + 2 * kFence); }
  Memory(const Memory&) = delete;
  float* end() { return data + count; }

  static constexpr int64_t kFence = int64_t{1} << 33;
  int64_t count, bytes;
  unsigned char* start;
  float* data;
};

std::mt19937 generator(7);

int failures = 0;

void expect_same(const std::string& name, const float* ours, const float* small, int64_t count) {
  int64_t zeros = 0;
  for (int64_t i = 0; i < count; ++i) zeros += small[i] == 0;
  if (zeros <= count / 2 && std::memcmp(ours, small, count * sizeof(float)) == 0) return;
  std::printf("%s: differs at the far end\n", name.c_str());
  ++failures;
}

void check(const std::string& name, cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("%s: not launched\n", name.c_str());
  ++failures;
}

// Tensors by name, of `rows` rows, each with the same last `last` rows.
class Tensors {
 public:
  Tensors(int64_t rows, int64_t last) : rows_(rows), last_(last) {}
  float* input(const std::string& name, int64_t width) {
    Memory& made = memory(name, rows_ * width);
    std::mt19937 numbers(static_cast<unsigned>(std::hash<std::string>()(name)));
    for (float* p = made.end() - last_ * width; p < made.end(); ++p) {
      *p = std::normal_distribution<float>()(numbers);
    }
    return made.data;
  }
  float* output(const std::string& name, int64_t width) { return memory(name, rows_ * width).data; }
  float* end(const std::string& name) { return held_.at(name)->end(); }

 private:
  Memory& memory(const std::string& name, int64_t count) {
    return *(held_[name] = std::make_unique<Memory>(count));
  }
  int64_t rows_, last_;
  std::map<std::string, std::unique_ptr<Memory>> held_;
};

// run(tensors, rows) for many rows, of which the last block of each launch runs, and for the last `last`
// alone.
template <typename Run>
void compare_ends(const std::string& name, int64_t rows, int64_t last,
                  const std::map<std::string, int64_t>& ends, Run&& run) {
  Tensors large(rows, last), small(last, last);
  emulation::Grid::get().far = true;
  check(name, run(large, rows));
  emulation::Grid::get().far = false;
  check(name, run(small, last));
  for (const auto& [tensor, count] : ends) {
    expect_same(name + " " + tensor, large.end(tensor) - count, small.end(tensor) - count, count);
  }
}

constexpr int64_t kBlock = 256;

// 2^31 units, of which a block has the last 256.
void cells() {
  constexpr int64_t kHidden = 1024, kRows = int64_t{1} << 21;
  const auto forward = [](Tensors& t, int64_t gates, bool gru) {
    RecurrentForward p{};
    p.hidden = kHidden;
    p.activation = Activation::kTanh;
    p.gates = t.input("gates", gates * kHidden);
    if (gates > 1) {
      p.state = t.input("state", kHidden);
      p.output = t.output("output", kHidden);
    }
    if (gru) {
      p.hidden_gates = t.input("hidden_gates", gates * kHidden);
      p.candidate = t.output("candidate", kHidden);
    } else if (gates > 1) {
      p.cell = t.output("cell", kHidden);
    }
    return p;
  };
  const auto backward = [](Tensors& t, int64_t gates, bool gru) {
    RecurrentBackward p{};
    p.hidden = kHidden;
    p.activation = Activation::kTanh;
    p.grad_output = t.input("grad_output", kHidden);
    p.gates = t.input("gates", gates * kHidden);
    p.grad_gates = t.output("grad_gates", gates * kHidden);
    if (gates > 1) {
      p.state = t.input("state", kHidden);
      p.grad_state = t.output("grad_state", kHidden);
    }
    if (gru) {
      p.candidate = t.input("candidate", kHidden);
      p.grad_hidden_gates = t.output("grad_hidden_gates", gates * kHidden);
    } else if (gates > 1) {
      p.grad_cell = t.input("grad_cell", kHidden);
      p.cell = t.input("cell", kHidden);
    }
    return p;
  };
  compare_ends("rnn_forward", kRows, 1, {{"gates", kBlock}}, [&](Tensors& t, int64_t rows) {
    return launch_rnn_forward(forward(t, 1, false), rows, DType::kFloat32, nullptr);
  });
  compare_ends("gru_forward", kRows, 1, {{"gates", kBlock}, {"candidate", kBlock}, {"output", kBlock}},
               [&](Tensors& t, int64_t rows) {
                 return launch_gru_forward(forward(t, 3, true), rows, DType::kFloat32, nullptr);
               });
  compare_ends("lstm_forward", kRows, 1, {{"gates", kBlock}, {"cell", kBlock}, {"output", kBlock}},
               [&](Tensors& t, int64_t rows) {
                 return launch_lstm_forward(forward(t, 4, false), rows, DType::kFloat32, nullptr);
               });
  compare_ends("rnn_backward", kRows, 1, {{"grad_gates", kBlock}}, [&](Tensors& t, int64_t rows) {
    return launch_rnn_backward(backward(t, 1, false), rows, DType::kFloat32, nullptr);
  });
  compare_ends("gru_backward", kRows, 1,
               {{"grad_gates", kBlock}, {"grad_hidden_gates", kBlock}, {"grad_state", kBlock}},
               [&](Tensors& t, int64_t rows) {
                 return launch_gru_backward(backward(t, 3, true), rows, DType::kFloat32, nullptr);
               });
  compare_ends("lstm_backward", kRows, 1, {{"grad_gates", kBlock}, {"grad_state", kBlock}},
               [&](Tensors& t, int64_t rows) {
                 return launch_lstm_backward(backward(t, 4, false), rows, DType::kFloat32, nullptr);
               });
}

// Columns of a matrix with more than 2^31 elements: 4 rows of 2^30, a block for the last 32 columns.
void column_sums() {
  constexpr int64_t kRows = 4, kColumns = int64_t{1} << 30, kOwn = 32;
  Memory matrix(kRows * kColumns), sums(kColumns), small(kRows * kOwn), small_sums(kOwn);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kOwn; ++i) {
      const float value = std::normal_distribution<float>()(generator);
      matrix.data[(row + 1) * kColumns - kOwn + i] = small.data[row * kOwn + i] = value;
    }
  }
  emulation::Grid::get().far = true;
  check("column_sums",
        launch_column_sums(matrix.data, kRows, kColumns, sums.data, nullptr, DType::kFloat32, nullptr));
  emulation::Grid::get().far = false;
  check("column_sums",
        launch_column_sums(small.data, kRows, kOwn, small_sums.data, nullptr, DType::kFloat32, nullptr));
  expect_same("column_sums", sums.end() - kOwn, small_sums.data, kOwn);
}

// Packed sequences whose rows begin beyond 2^29, so that their gates begin beyond 2^31.
template <typename Forward, typename Backward>
void layers(const std::string& name, LayerMode mode, Forward&& forward, Backward&& backward) {
  constexpr int64_t kHidden = 8, kBatch = 5, kSteps = 3, kUsed = 12;
  const int64_t counts[kSteps] = {5, 4, 3};
  const int64_t gates = layer_gates(mode), width = gates * kHidden;
  std::vector<float> weight(width * kHidden), bias(width);
  for (float& value : weight) value = std::normal_distribution<float>(0, 0.3f)(generator);
  for (float& value : bias) value = std::normal_distribution<float>()(generator);
  const auto run = [&](Tensors& t, Tensors& states, int64_t first) {
    const int64_t offsets[kSteps] = {first, first + 5, first + 9};
    RecurrentLayerParams p{};
    p.mode = mode;
    p.steps = kSteps;
    p.batch = kBatch;
    p.hidden = kHidden;
    p.counts = counts;
    p.offsets = offsets;
    p.weight = weight.data();
    p.bias = bias.data();
    p.products = t.input("products", width);
    p.h_0 = states.input("h_0", kHidden);
    p.c_0 = states.input("c_0", kHidden);
    p.output_row = p.grad_output_row = 2 * kHidden;
    p.output = t.output("output", p.output_row);
    p.h_n = states.output("h_n", kHidden);
    p.c_n = states.output("c_n", kHidden);
    p.saved = t.output("saved", 4 * kHidden);
    p.cells = t.output("cells", kHidden);
    p.grad_output = t.input("grad_output", p.grad_output_row);
    p.grad_h = states.input("grad_h", kHidden);
    p.grad_c = states.input("grad_c", kHidden);
    p.grad_gates = t.output("grad_gates", width);
    p.grad_hidden_gates = t.output("grad_hidden_gates", width);
    p.grad_h_0 = states.output("grad_h_0", kHidden);
    p.grad_c_0 = states.output("grad_c_0", kHidden);
    check(name, forward(p));
    check(name, backward(p));
  };
  constexpr int64_t kFirst = int64_t{1} << 29;
  Tensors large(kFirst + kUsed, kUsed), small(kUsed, kUsed), states(kBatch, kBatch), few(kBatch, kBatch);
  run(large, states, kFirst);
  run(small, few, 0);
  std::map<std::string, int64_t> rows{{"grad_gates", width}};
  if (gates > 1) rows["saved"] = 4 * kHidden;
  if (gates == 4) rows["cells"] = kHidden;
  if (gates == 3) rows["grad_hidden_gates"] = width;
  for (const auto& [tensor, size] : rows) {
    expect_same(name + " " + tensor, large.end(tensor) - kUsed * size, small.end(tensor) - kUsed * size,
                kUsed * size);
  }
  // Half of each output row belongs to the other direction.
  expect_same(name + " output", large.end("output") - kUsed * 2 * kHidden,
              small.end("output") - kUsed * 2 * kHidden, kUsed * 2 * kHidden);
  for (const char* state : {"h_n", "grad_h_0"}) {
    expect_same(name + " " + state, states.end(state) - kBatch * kHidden, few.end(state) - kBatch * kHidden,
                kBatch * kHidden);
  }
}

void all_layers() {
  const std::map<std::string, LayerMode> modes{
      {"rnn", LayerMode::kTanh}, {"gru", LayerMode::kGRU}, {"lstm", LayerMode::kLSTM}};
  for (const auto& [name, mode] : modes) {
    layers(
        name + " layer", mode,
        [](const RecurrentLayerParams& p) { return launch_recurrent_layer(p, DType::kFloat32, nullptr); },
        [](const RecurrentLayerParams& p) {
          return launch_recurrent_layer_backward(p, DType::kFloat32, nullptr);
        });
    layers(
        name + " cluster", mode,
        [](const RecurrentLayerParams& p) { return launch_recurrent_cluster(p, DType::kFloat32, nullptr); },
        [](const RecurrentLayerParams& p) {
          return launch_recurrent_cluster_backward(p, DType::kFloat32, nullptr);
        });
    layers(
        name + " cluster on tensor cores", mode,
        [](RecurrentLayerParams p) {
          p.tf32 = true;
          return launch_recurrent_cluster(p, DType::kFloat32, nullptr);
        },
        [](RecurrentLayerParams p) {
          p.tf32 = true;
          return launch_recurrent_cluster_backward(p, DType::kFloat32, nullptr);
        });
    Memory workspace(recurrent_grid_workspace(mode, 8, 5, DType::kFloat32));
    layers(
        name + " grid", mode,
        [&](const RecurrentLayerParams& p) {
          return launch_recurrent_grid(p, workspace.data, DType::kFloat32, nullptr);
        },
        [&](const RecurrentLayerParams& p) {
          return launch_recurrent_grid_backward(p, workspace.data, DType::kFloat32, nullptr);
        });
  }
}

// Images of 1024x1024 and two channels: 2^32 elements, and planes of 2^28 transformed tiles. A block has the
// last 256 of a plane, a row of the last channel or half a row of both.
void winograd(bool channels_last) {
  constexpr int64_t kSide = 1024, kImages = int64_t{1} << 11, kChannels = 2, kPlanes = 36;
  constexpr int64_t kTiles = kSide / 4 * (kSide / 4);
  const std::string layout = channels_last ? "winograd channels_last" : "winograd";
  const auto params = [&](Tensors& t, int64_t images) {
    Conv2dWinogradParams p{};
    p.batch = static_cast<int32_t>(images);
    p.source_channels = p.result_channels = kChannels;
    p.height = p.width = p.result_height = p.result_width = kSide;
    p.pad_h = p.pad_w = 1;
    p.channels_last = channels_last;
    p.source = t.input("source", kChannels * kSide * kSide);
    p.gradient = t.input("gradient", kChannels * kSide * kSide);
    return p;
  };
  const auto planes = [](int64_t images) { return kPlanes * kChannels * kTiles * images; };
  // A plane's last elements, of all planes.
  const auto compare_planes = [&](const std::string& name, Memory& large, Memory& small) {
    for (int64_t i = 1; i <= kPlanes; ++i) {
      expect_same(name, large.data + i * (large.count / kPlanes) - kBlock,
                  small.data + i * (small.count / kPlanes) - kBlock, kBlock);
    }
  };
  Tensors images(kImages, 1), image(1, 1);
  emulation::Grid::get().far = true;
  Conv2dWinogradParams many = params(images, kImages), one = params(image, 1);
  for (const bool of_source : {true, false}) {
    const auto launched = of_source ? launch_winograd_sources : launch_winograd_gradients;
    Memory large(planes(kImages)), small(planes(1));
    many.sources = many.gradients = large.data;
    one.sources = one.gradients = small.data;
    check(layout, launched(many, nullptr));
    check(layout, launched(one, nullptr));
    compare_planes(layout + (of_source ? " sources" : " gradients"), large, small);
  }
  Memory large(planes(kImages)), small(planes(1));
  for (int64_t i = 1; i <= kPlanes; ++i) {
    for (int64_t k = 1; k <= kBlock; ++k) {
      const float value = std::normal_distribution<float>()(generator);
      large.data[i * (large.count / kPlanes) - k] = small.data[i * (small.count / kPlanes) - k] = value;
    }
  }
  many.products = large.data;
  one.products = small.data;
  for (const bool residual : {false, true}) {
    many.result = images.output("result", kChannels * kSide * kSide);
    one.result = image.output("result", kChannels * kSide * kSide);
    many.residual = residual ? many.gradient : nullptr;
    one.residual = residual ? one.gradient : nullptr;
    check(layout, launch_winograd_results(many, nullptr));
    check(layout, launch_winograd_results(one, nullptr));
    expect_same(layout + " results", images.end("result") - kBlock * 4, image.end("result") - kBlock * 4,
                kBlock * 4);
  }
  emulation::Grid::get().far = false;
}

}  // namespace

int main() {
  cells();
  column_sums();
  all_layers();
  winograd(false);
  winograd(true);
  return failures == 0 ? 0 : 1;
}
