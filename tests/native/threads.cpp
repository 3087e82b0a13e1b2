// What `make tsan` runs under ThreadSanitizer: norms forward and backward (c_api.h), quantised norms, and steps of a GRU
// and an LSTM with their backward passes, from several threads at once, on the own pool and on a function in the place
// of torch's, while other threads change the number of threads and that function.
//
//     threads [rounds]
//
// Each result must have the bits of the same call on one thread.

#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "c_api.h"
#include "quantized.h"
#include "recurrent_backward.h"

namespace rmsnorm {
namespace {

// Calls f on three threads that end with the call. torch's own keeps its threads.
int32_t on_new_threads(int64_t begin, int64_t end, int64_t grain, RangeFunction f, void* context) {
  const int64_t piece = std::max(grain, (end - begin + 2) / 3);
  std::vector<std::thread> threads;
  for (int64_t at = begin + piece; at < end; at += piece)
    threads.emplace_back([=] { f(at, std::min(end, at + piece), context); });
  f(begin, std::min(end, begin + piece), context);
  for (std::thread& t : threads) t.join();
  return 0;
}

using Numbers = std::vector<float>;

Numbers random_numbers(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Numbers found(count);
  for (float& v : found) v = normal(random);
  return found;
}

// A norm of rows that several threads share, forward and backward.
struct Norm {
  NormKind kind;
  int64_t rows, n;
  Numbers x, dy, weight, bias;

  Norm(NormKind kind, int64_t rows, int64_t n)
      : kind(kind),
        rows(rows),
        n(n),
        x(random_numbers(rows * n, 1)),
        dy(random_numbers(rows * n, 2)),
        weight(random_numbers(n, 3)),
        bias(random_numbers(n, 4)) {}

  // y, dx, dweight and dbias, one after the other.
  Numbers run(int flags) const {
    const c_api::Api& api = *rmsnorm_c_api();
    Numbers found(2 * rows * n + 2 * n, NAN);
    float *const y = found.data(), *const dx = y + rows * n, *const dweight = dx + rows * n;
    const int64_t shape[] = {rows, n}, strides[] = {n, 1};
    const auto matrix = [&](const float* of) {
      return c_api::StridedTensor{const_cast<float*>(of), int(DType::float32), 2, shape, strides};
    };
    const auto row = [&](const float* of) {
      return c_api::StridedTensor{const_cast<float*>(of), int(DType::float32), 1, shape + 1, strides + 1};
    };
    const auto x_ = matrix(x.data()), dy_ = matrix(dy.data()), y_ = matrix(y), dx_ = matrix(dx);
    const auto weight_ = row(weight.data()), bias_ = row(bias.data()), dweight_ = row(dweight),
               dbias_ = row(dweight + n);
    NormSpec spec{kind, flags, 1, n, n, 1e-5};
    if (!api.forward(spec, x_, &weight_, &bias_, y_, nullptr, nullptr) ||
        !api.backward(spec, dy_, x_, &weight_, &dx_, nullptr, &dweight_, &dbias_))
      return {};
    return found;
  }
};

// The norm of rows as codes of eight bits, one scale a row.
template <class Code>
struct Quantized {
  int64_t rows, n;
  Numbers x = random_numbers(rows * n, 1), gain = random_numbers(n, 2);

  // The scales, and then the codes.
  Numbers run(int flags) const {
    const int64_t shape[] = {rows, n};
    const View view = *View::of(const_cast<float*>(x.data()), int(DType::float32), 2, shape, nullptr);
    std::vector<uint8_t> codes(rows * n);
    Numbers found(rows);
    const Problem problem{{NormKind::rms, flags, 1, n, n, 1e-5}, rows};
    quantize_tensor<Code, float>(
        problem,
        {.x = {x.data(), Rows(view, 1)}, .q = codes.data(), .scale = found.data(), .affine = {.gain = gain.data()}});
    found.insert(found.end(), codes.begin(), codes.end());
    return found;
  }
};

// Two steps of a layer with norms on both sides, and on the LSTM's cell state; then their backward passes.
struct Layer {
  int gates;
  int64_t batch, hidden;
  static constexpr int64_t STEPS = 2;
  int64_t width = gates * hidden, rows = STEPS * batch;
  Numbers input = random_numbers(rows * width, 1), state = random_numbers(rows * width, 2),
          before = random_numbers(rows * hidden, 3), dh_after = random_numbers(rows * hidden, 4),
          gains = random_numbers(5 * width, 5);

  // States, gradients, and the sums of the parameters' gradients.
  Numbers run(int flags) const {
    Recurrence r{.gates = gates, .hidden = hidden, .centred = false, .eps = 1e-5, .input = {}, .state = {}};
    r.input = {1, {{0, gates, width}}}, r.state = {2, {{0, 1, hidden}, {1, gates, hidden}}}, r.cell = {0, 1, hidden};
    r.threads = flags & OWN_THREADS ? Threads::own : Threads::torch;
    Numbers h_after(rows * hidden), c_after(rows * hidden), values(rows * width), dinput(rows * width),
        dstate(rows * width), dh(batch * hidden), dc(batch * hidden);
    const float* gain = gains.data();
    const LayerTensors<float> tensors{input.data(),  state.data(),     before.data(),    h_after.data(),
                                      before.data(), c_after.data(),   values.data(),    gain,
                                      gain + width,  gain + 2 * width, gain + 3 * width, gain + 4 * width};
    for (int64_t step = 0; step < STEPS; ++step) recurrent_step(r, tensors, step * batch, batch, step * batch);
    const LayerGradients<float> gradients{tensors,   dh_after.data(), dinput.data(), dstate.data(),
                                          dh.data(), dc.data(),       false};
    std::vector<double> sums(tasks_of(batch) * count_of_sums(r));
    for (int64_t step = STEPS; step-- > 0;)
      recurrent_step_backward(r, gradients, step * batch, batch, batch, sums.data());
    Numbers found(sums.begin(), sums.end());
    for (const Numbers& more : {h_after, c_after, values, dinput, dstate, dh, dc})
      found.insert(found.end(), more.begin(), more.end());
    return found;
  }
};

// The error of one piece must reach the caller.
bool error_arrives(Threads threads) {
  try {
    parallel_for(threads, 0, 64, 1, [](int64_t begin, int64_t end) {
      if (begin <= 40 && 40 < end) throw std::runtime_error("of piece 40");
    });
  } catch (const std::runtime_error& error) {
    return std::string(error.what()) == "of piece 40";
  }
  return false;
}

int check(int rounds) {
  // The last norm is added up by many tasks; the first is one piece, and has no other thread.
  const Norm norms[] = {
      {NormKind::rms, 3, 65}, {NormKind::rms, 1500, 65}, {NormKind::layer, 40, 4100}, {NormKind::layer, 4000, 24}};
  const Quantized<Int8Code> int8{900, 65};
  const Quantized<Float8E4M3Code> float8{70, 1030};
  const Layer gru{3, 70, 33}, lstm{4, 50, 40};
  std::vector<std::function<Numbers(int)>> calls;
  for (const Norm& norm : norms) calls.push_back([&norm](int flags) { return norm.run(flags); });
  calls.push_back([&](int flags) { return int8.run(flags); });
  calls.push_back([&](int flags) { return float8.run(flags); });
  calls.push_back([&](int flags) { return gru.run(flags); });
  calls.push_back([&](int flags) { return lstm.run(flags); });
  Pool::instance().set_threads(1);
  std::vector<Numbers> right;
  for (const auto& call : calls) right.push_back(call(OWN_THREADS));

  std::atomic<int> wrong{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> callers, changers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&, caller] {
      for (int round = caller; round < rounds + caller; ++round) {
        const size_t i = round % calls.size();
        const int flags = round / calls.size() % 2 ? OWN_THREADS : 0;
        const Numbers found = calls[i](flags);
        if (found.size() != right[i].size() || std::memcmp(found.data(), right[i].data(), 4 * found.size())) ++wrong;
        if (!error_arrives(flags ? Threads::own : Threads::torch)) ++wrong;
      }
    });
  changers.emplace_back([&] {
    for (int i = 0; !done; ++i) Pool::instance().set_threads(1 + i % 4), std::this_thread::yield();
  });
  changers.emplace_back([&] {
    for (int i = 0; !done; ++i) {
      rmsnorm_c_api()->use_threads(i % 3 ? reinterpret_cast<void*>(on_new_threads) : nullptr);
      const int threads = Pool::instance().threads();
      if (threads < 1 || threads > 4) ++wrong;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  for (std::thread& t : callers) t.join();
  done = true;
  for (std::thread& t : changers) t.join();
  std::printf("%d rounds on each of 3 threads, %d results or errors wrong\n", rounds, wrong.load());
  return wrong.load() != 0;
}

}  // namespace
}  // namespace rmsnorm

int main(int count, char** arguments) { return rmsnorm::check(count > 1 ? std::atoi(arguments[1]) : 100); }
