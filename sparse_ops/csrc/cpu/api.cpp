// The C interface that Python calls through ctypes: chooses a level, makes the visiting order, shares the work out.
#include <algorithm>
#include <cstring>
#include <vector>

#include "plan.hpp"
#include "scatter.hpp"
#include "threads.hpp"

#define EXPORT __attribute__((visibility("default")))

namespace portable { extern const Level level; }
namespace avx2 { extern const Level level; }
namespace avx512 { extern const Level level; }
namespace avx512_bf16 { extern const Level level; }

namespace {

const Level& level_of(int number) {
#if SPARSE_OPS_LEVELS > 2
    if (number >= 2) return avx512::level;
#endif
#if SPARSE_OPS_LEVELS > 1
    if (number >= 1) return avx2::level;
#endif
    return portable::level;
}

// The level of a product: with pairs of bfloat16 numbers where the processor multiplies those.
const Level& product_level(int number, bool half, int64_t block) {
#if SPARSE_OPS_LEVELS > 3
    if (number == 3 && half && block > 1) return avx512_bf16::level;
#endif
    return level_of(number);
}

constexpr int64_t kRows = 16;  // of blocks, whose weights are gathered at a time

// Streamed features in a chunk of 1x1 blocks: a little more than L1, since larger chunks fill more groups of kDots.
int64_t chunk_features(int64_t panel) { return std::max<int64_t>(16, 49152 / (panel * 4) / 16 * 16); }

}  // namespace

char* thread_workspace(size_t bytes) {
    static thread_local Workspace workspace;
    return workspace.get(bytes);
}

extern "C" {

// 3: AVX-512 with AVX512_BF16, 2: AVX-512, 1: AVX2, 0: portable; the best of those compiled (SPARSE_OPS_LEVELS of them)
// that this processor and its operating system run.
EXPORT int sparse_ops_best_level() {
    int best = 0;
#if SPARSE_OPS_LEVELS > 1
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        best = 1;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            best = __builtin_cpu_supports("avx512bf16") ? 3 : 2;
    }
#endif
    return best < SPARSE_OPS_LEVELS ? best : SPARSE_OPS_LEVELS - 1;
}

// y[tokens, n_out] = x[tokens, n_in] W^T + bias, or with `gelu` its GELU, whose derivative goes to slope[tokens, n_out]
// unless that is null. W is given by one side of its index; `transposed`: by the other, for dX.
// half: x, y and values are bfloat16. bias float32 [n_out] or null. Returns 0, or -1 when memory runs out.
EXPORT int sparse_ops_product(const void* x, void* y, void* slope, int gelu, const float* bias, const void* values,
                              int64_t tokens, int64_t n_in, int64_t n_out, int64_t block, int transposed, int half,
                              const int32_t* ptr, const int32_t* slots, const int32_t* other, int level_number,
                              int threads, Parallel parallel) try {
    if (tokens == 0) return 0;
    const Level& level = product_level(level_number, half, block);
    Side side{n_out / block, ptr, slots, other};
    const bool by_output = block == kOutputLanes && level.pairs == 1 && n_in <= kLongestRow;
    int64_t panel = level.product_panel(block, by_output), panels = (tokens + panel - 1) / panel;
    int64_t most = by_output ? n_in : level.product_chunk(block), n_chunks = (n_in + most - 1) / most;
    int64_t chunk = (n_in + n_chunks * 16 - 1) / (n_chunks * 16) * 16;
    // With few panels the block rows are shared out too; each part then packs the panel for itself.
    int64_t n_groups = panels >= 4 * threads ? 1 : std::min<int64_t>(threads, side.n_rows / rows_of_a_line(block) + 1);
    auto for_each = [&](int64_t parts, const std::function<void(int64_t)>& work) {
        for_each_part(parallel, block == 1 ? threads : 1, parts, work);  // for fewer blocks threads do not pay
    };
    static thread_local Workspace workspace;
    float* weights = (float*)workspace.get((side.nnz() * block * block + 1) * sizeof(float));
    const float* scalars = block > 1 ? nullptr : half ? weights : (const float*)values;
    if (scalars == weights)
        std::transform((const uint16_t*)values, (const uint16_t*)values + side.nnz(), weights, from_half);
    BlockOrder order(side, block, n_chunks, chunk, by_output ? 1 : panel, level.pairs, scalars, n_groups, for_each);
    int64_t next = 0;
    Product job{};
    job.x = x, job.y = y, job.slope = slope, job.gelu = gelu, job.half = half, job.lanes_are_outputs = by_output;
    job.bias = bias, job.values = values, job.transposed = transposed, job.weights = weights;
    job.tokens = tokens, job.n_in = n_in, job.n_out = n_out, job.block = block, job.n_rows = side.n_rows;
    job.panel = panel, job.chunk = chunk, job.n_chunks = n_chunks, job.chunk_ptr = order.chunk_ptr.data();
    job.entries = order.entries.data(), job.order = order.order.data();
    job.groups = order.groups.data(), job.n_groups = n_groups, job.next = &next;
    if (block > 1)
        for_each_part(parallel, threads, (side.n_rows + kRows - 1) / kRows, [&](int64_t part) {
            level.gather(job, part * kRows, std::min(side.n_rows, (part + 1) * kRows));
        });
    for_each_part(parallel, threads, std::min<int64_t>(panels * n_groups, threads),
                  [&](int64_t) { level.product(job); });
    return 0;
} catch (const std::exception&) {
    return -1;
}

// out[nnz, block, block] = dy^T x at the blocks, in slot order; bias[n_out] = dy summed over tokens, unless null.
// half: x, dy, out and bias are bfloat16.
EXPORT int sparse_ops_gradient(const void* x, const void* dy, void* out, void* bias, int64_t tokens, int64_t n_in,
                               int64_t n_out, int64_t block, int half, const int32_t* rows, const int32_t* cols,
                               const int32_t* row_ptr, const int32_t* row_slots, const int32_t* col_ptr,
                               const int32_t* col_slots, int level_number, int threads, Parallel parallel) try {
    const Level& level = level_of(level_number);
    Side by_row{n_out / block, row_ptr, row_slots, cols}, by_col{n_in / block, col_ptr, col_slots, rows};
    bool x_resident = n_in <= n_out;
    const Side& streamed = x_resident ? by_row : by_col;
    Gradient job{};
    job.resident = x_resident ? x : dy, job.streamed = x_resident ? dy : x, job.dy = dy, job.n_out = n_out;
    job.n_resident = x_resident ? n_in : n_out, job.n_streamed = x_resident ? n_out : n_in;
    job.block = block, job.half = half, job.panel = level.gradient_panel(block);
    auto for_each = [&](int64_t parts, const std::function<void(int64_t)>& work) {
        for_each_part(parallel, threads, parts, work);
    };
    std::vector<UnitOrder> units;
    std::vector<DotOrder> dots;
    Sums sums{};
    if (block == 1) {
        job.chunk = chunk_features(job.panel), job.n_chunks = (job.n_streamed + job.chunk - 1) / job.chunk;
        const Side& resident = x_resident ? by_col : by_row;
        const DotOrder& order = dots.emplace_back(resident, job.n_chunks, job.chunk, job.panel, for_each);
        job.dots = order.groups.data(), job.chunk_ptr = order.chunk_ptr.data();
        int64_t count = (int64_t)order.slots.size();
        sums = {count, count, 1, 1, order.slots.data(), nullptr};
    } else {
        const UnitOrder& order = units.emplace_back(streamed, block, level.lanes, job.panel);
        job.units = order.units.data(), job.unit_ptr = order.ptr.data();
        int64_t floats = (int64_t)order.units.size() * order.unit;
        sums = {streamed.nnz(), floats, order.width, order.stride, streamed.slots, order.places.data()};
    }
    // Of every thread: the blocks' sums, then the bias's.
    int64_t panels = (tokens + job.panel - 1) / job.panel;
    int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, panels));
    int64_t length = (sums.floats + n_out + 31) / 16 * 16;
    static thread_local Workspace workspace;
    float* all_sums = (float*)workspace.get(parts * length * sizeof(float));
    std::vector<const float*> all;
    for (int64_t p = 0; p < parts; ++p) all.push_back(all_sums + p * length);
    for_each_part(parallel, threads, parts, [&](int64_t p) {
        float* mine = all_sums + p * length;
        memset(mine, 0, length * sizeof(float));
        int64_t first = panels * p / parts * job.panel, last = std::min(tokens, panels * (p + 1) / parts * job.panel);
        level.gradient(job, first, last, mine, bias ? mine + sums.floats : nullptr);
    });
    int64_t n_scatters = sums.floats < 16384 ? 1 : threads;
    for_each_part(parallel, threads, n_scatters, [&](int64_t p) {
        int64_t first = sums.count * p / n_scatters, last = sums.count * (p + 1) / n_scatters;
        auto to = [&](auto* values, auto convert) {
            scatter_any(sums.width, all, sums, first, last, block, !x_resident, values, convert);
        };
        if (half)
            to((uint16_t*)out, to_half);
        else
            to((float*)out, [](float f) { return f; });
    });
    for (int64_t o = 0; bias && o < n_out; ++o) {
        float sum = 0;
        for (const float* part : all) sum += part[sums.floats + o];
        if (half)
            ((uint16_t*)bias)[o] = to_half(sum);
        else
            ((float*)bias)[o] = sum;
    }
    return 0;
} catch (const std::exception&) {
    return -1;
}

}  // extern "C"
