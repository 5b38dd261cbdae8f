// What api.hpp declares: chooses a level, makes the visiting order, shares the work out.
#include "api.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "plan.hpp"
#include "scatter.hpp"
#include "threads.hpp"

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

// The number of the variant of a product that is taken where none has been chosen.
int default_variant(const Level& level, bool half, int64_t block, int64_t n_in) {
    int number = 0;
    while (level.product(block, half, number)->longest < n_in) ++number;
    return number;
}

// A way to carry out dW with blocks of 4 and more: a block's sums over so many panels are made one after the other,
// while they are in L1, and inputs of so many are in L2 at a time.
struct GradientVariant {
    const char* name;
    int64_t panels;
};
constexpr GradientVariant kGradients[] = {{"one panel", 1}, {"two panels", 2}};  // the first where none has been chosen

const GradientVariant* gradient_variant(int64_t block, int number) {
    const int count = block == 1 ? 1 : 2;
    return number >= 0 && number < count ? kGradients + number : nullptr;
}

// Streamed features in a chunk of 1x1 blocks: a little more than L1, since larger chunks fill more groups of kDots.
int64_t chunk_features(int64_t panel) { return std::max<int64_t>(16, 49152 / (panel * 4) / 16 * 16); }

// A gradient's job with the order of the blocks that it points to, and how its sums will lie.
struct GradientPlan {
    Gradient job;
    bool x_resident;  // else dy is
    Sums sums{};
    std::optional<UnitOrder> units;
    std::optional<DotOrder> dots;  // of 1x1 blocks

    GradientPlan(const GradientCall& call, const Level& level) : job{call}, x_resident(call.n_in <= call.n_out) {
        const int64_t n_rows = call.n_out / call.block, n_cols = call.n_in / call.block;
        const Side by_row = rows_of(call.index, call.blocks, n_rows, n_cols);
        const Side by_col = cols_of(call.index, call.blocks, n_rows, n_cols);
        const Side &streamed = x_resident ? by_row : by_col, &resident = x_resident ? by_col : by_row;
        job.resident = x_resident ? call.x : call.dy, job.streamed = x_resident ? call.dy : call.x;
        job.n_resident = x_resident ? call.n_in : call.n_out, job.n_streamed = x_resident ? call.n_out : call.n_in;
        const GradientVariant* chosen = gradient_variant(call.block, call.variant);
        job.panel = level.gradient_panel(call.block) * (chosen ? chosen : kGradients)->panels;
        if (call.block == 1) {
            job.chunk = chunk_features(job.panel), job.n_chunks = (job.n_streamed + job.chunk - 1) / job.chunk;
            dots.emplace(resident, job.n_chunks, job.chunk, job.panel, [&](int64_t parts, const auto& work) {
                for_each_part(call.parallel, call.threads, parts, work);
            });
            job.dots = dots->groups.get(), job.chunk_ptr = dots->chunk_ptr.data();
            const int64_t count = dots->chunk_ptr.back() * kDots;
            sums = {count, count, 1, 1, dots->slots.get(), nullptr};
        } else {
            units.emplace(streamed, call.block, level.lanes, job.panel);
            job.units = units->units.data(), job.unit_ptr = units->ptr.data();
            int64_t floats = (int64_t)units->units.size() * units->unit;
            sums = {streamed.nnz, floats, units->width, units->stride, streamed.slots, units->places.data()};
        }
    }
};

// Add the threads' sums in their order, each the blocks' and then the bias's, and write them as `T`.
template <class T, class Convert>
void write_gradient(const GradientCall& call, const GradientPlan& plan, const std::vector<const float*>& parts,
                    Convert convert) {
    const Sums& sums = plan.sums;
    int64_t n_scatters = sums.floats < 16384 ? 1 : call.threads;
    for_each_part(call.parallel, call.threads, n_scatters, [&](int64_t p) {
        int64_t first = sums.count * p / n_scatters, last = sums.count * (p + 1) / n_scatters;
        scatter_any(sums.width, parts, sums, first, last, call.block, !plan.x_resident, (T*)call.out, convert);
    });
    for (int64_t o = 0; call.bias && o < call.n_out; ++o) {
        float sum = 0;
        for (const float* part : parts) sum += part[sums.floats + o];
        ((T*)call.bias)[o] = convert(sum);
    }
}

void product(const ProductCall& call) {
    const Level& level = product_level(call.level, call.half, call.block);
    const int64_t block = call.block, threads = call.threads;
    const int64_t n_outs = call.n_out / block, n_ins = call.n_in / block;
    const Side side = call.transposed ? cols_of(call.index, call.blocks, n_ins, n_outs)
                                      : rows_of(call.index, call.blocks, n_outs, n_ins);
    const ProductVariant* chosen = call.variant < 0 ? nullptr : level.product(block, call.half, call.variant);
    const ProductVariant& variant =
        chosen ? *chosen : *level.product(block, call.half, default_variant(level, call.half, block, call.n_in));
    int64_t panel = variant.panel, panels = (call.tokens + panel - 1) / panel;
    int64_t most = variant.chunk ? variant.chunk : call.n_in, n_chunks = (call.n_in + most - 1) / most;
    int64_t chunk = (call.n_in + n_chunks * 16 - 1) / (n_chunks * 16) * 16;
    // With few panels the block rows are shared out too; each part then packs the panel for itself.
    int64_t n_groups = panels >= 4 * threads ? 1 : std::min<int64_t>(threads, side.n_rows / rows_of_a_line(block) + 1);
    // The order of larger blocks, which are fewer, is made by one thread: more do not pay.
    auto for_each = [&](int64_t parts, const auto& work) {
        for_each_part(call.parallel, block == 1 ? call.threads : 1, parts, work);
    };
    static thread_local Workspace workspace;
    float* weights = (float*)workspace.get((side.nnz * block * block + 1) * sizeof(float));
    const float* scalars = block > 1 ? nullptr : call.half ? weights : (const float*)call.values;
    if (scalars == weights) {
        const uint16_t* values = (const uint16_t*)call.values;
        std::transform(values, values + side.nnz, weights, from_half);
    }
    BlockOrder order(side, block, n_chunks, chunk, variant.spacing, level.pairs, scalars, n_groups, for_each);
    int64_t next = 0;
    Product job{call};
    job.weights = weights, job.n_rows = side.n_rows;
    job.panel = panel, job.chunk = chunk, job.n_chunks = n_chunks, job.chunk_ptr = order.chunk_ptr.data();
    job.entries = order.entries.get();
    job.groups = order.groups.data(), job.n_groups = n_groups, job.next = &next;
    std::optional<PairOrder> pairs;
    if (block > 1) {
        for_each_part(call.parallel, call.threads, (side.n_rows + kRows - 1) / kRows, [&](int64_t part) {
            variant.gather(job, part * kRows, std::min(side.n_rows, (part + 1) * kRows));
        });
    } else {
        pairs.emplace(order, side.n_rows, n_chunks, (int32_t)(chunk * panel), for_each);
        job.entries = pairs->entries.get(), job.pair_rows = pairs->rows.data(), job.pair_ptr = pairs->ptr.data();
    }
    for_each_part(call.parallel, call.threads, std::min<int64_t>(panels * n_groups, threads),
                  [&](int64_t) { variant.run(job); });
}

void gradient(const GradientCall& call) {
    const Level& level = level_of(call.level);
    const GradientPlan plan(call, level);
    const int64_t panel = level.gradient_panel(call.block), panels = (call.tokens + panel - 1) / panel;
    int64_t n_parts = std::max<int64_t>(1, std::min<int64_t>(call.threads, panels));
    int64_t length = (plan.sums.floats + call.n_out + 31) / 16 * 16;
    static thread_local Workspace workspace;
    float* all = (float*)workspace.get(n_parts * length * sizeof(float));
    std::vector<const float*> parts;
    for (int64_t p = 0; p < n_parts; ++p) parts.push_back(all + p * length);
    for_each_part(call.parallel, call.threads, n_parts, [&](int64_t p) {
        float* mine = all + p * length;
        memset(mine, 0, length * sizeof(float));
        int64_t first = panels * p / n_parts * panel, last = std::min(call.tokens, panels * (p + 1) / n_parts * panel);
        level.gradient(plan.job, first, last, mine, call.bias ? mine + plan.sums.floats : nullptr);
    });
    if (call.half)
        write_gradient<uint16_t>(call, plan, parts, to_half);
    else
        write_gradient<float>(call, plan, parts, [](float f) { return f; });
}

void attention(const AttentionCall& call) {
    const Level& level = level_of(call.level);
    int64_t next = 0;
    Attention job{call};
    job.next = &next;
    for_each_part(call.parallel, call.threads, std::min<int64_t>(call.batch * call.heads, call.threads),
                  [&](int64_t) { level.attention(job); });
}

constexpr int64_t kRounded = 65536;  // elements that a thread rounds at a time

void half_round(const HalfRoundCall& call) {
    const Level& level = level_of(call.level);
    for_each_part(call.parallel, call.threads, (call.count + kRounded - 1) / kRounded, [&](int64_t part) {
        level.half_round(call, part * kRounded, std::min(call.count, (part + 1) * kRounded));
    });
}

void half_products(const HalfProductsCall& call) {
    const Level& level = level_of(call.level);
    const int64_t panels = (call.columns + level.half_width - 1) / level.half_width;
    for_each_part(call.parallel, call.threads, call.jobs * panels,
                  [&](int64_t part) { level.half_products(call, part); });
}

constexpr int64_t kNormRows = 64;  // tokens of a part; weight gradients are summed by parts, whatever the threads are

int64_t norm_parts(int64_t tokens) { return (tokens + kNormRows - 1) / kNormRows; }

void add_norm(const AddNormCall& call) {
    const Level& level = level_of(call.level);
    for_each_part(call.parallel, call.threads, norm_parts(call.tokens), [&](int64_t part) {
        level.add_norm(call, part * kNormRows, std::min(call.tokens, (part + 1) * kNormRows));
    });
}

void add_norm_gradient(const AddNormGradientCall& call) {
    const Level& level = level_of(call.level);
    const int64_t parts = norm_parts(call.tokens), n = call.features;
    static thread_local Workspace workspace;
    float* sums = (float*)workspace.get((parts * 2 * n + 1) * sizeof(float));
    for_each_part(call.parallel, call.threads, parts, [&](int64_t part) {
        float* mine = sums + part * 2 * n;
        memset(mine, 0, 2 * n * sizeof(float));
        const int64_t last = std::min(call.tokens, (part + 1) * kNormRows);
        level.add_norm_gradient(call, part * kNormRows, last, mine, mine + n);
    });
    memset(call.dweight, 0, n * sizeof(float));
    memset(call.dbias, 0, n * sizeof(float));
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t j = 0; j < n; ++j) {
            call.dweight[j] += sums[part * 2 * n + j];
            call.dbias[j] += sums[(part * 2 + 1) * n + j];
        }
}

constexpr int64_t kWordsOfPart = 512;  // sums are made by parts, whatever the threads are

void cross_entropy(const CrossEntropyCall& call) {
    const Level& level = level_of(call.level);
    const int64_t parts = (call.words + kWordsOfPart - 1) / kWordsOfPart, n = call.tokens;
    static thread_local Workspace workspace;
    float* found = call.share ? nullptr : (float*)workspace.get(parts * 2 * n * sizeof(float));
    for_each_part(call.parallel, call.threads, parts, [&](int64_t part) {
        const int64_t first = part * kWordsOfPart, last = std::min(call.words, first + kWordsOfPart);
        if (call.share)
            level.cross_entropy_gradient(call, first, last);
        else
            level.cross_entropy(call, first, last, found + part * 2 * n, found + (part * 2 + 1) * n);
    });
    for (int64_t j = 0; found && j < n; ++j) {
        double largest = found[j], sum = 0;
        for (int64_t part = 1; part < parts; ++part) largest = std::max<double>(largest, found[part * 2 * n + j]);
        for (int64_t part = 0; part < parts; ++part)
            sum += found[(part * 2 + 1) * n + j] * std::exp(found[part * 2 * n + j] - largest);
        call.largest[j] = (float)largest, call.sums[j] = (float)sum;
    }
}

template <class Call>
int status_of(void (*work)(const Call&), const Call& call) {
    try {
        work(call);
        return 0;
    } catch (const BadIndex&) {
        return -2;
    } catch (const std::exception&) {
        return -1;
    }
}

}  // namespace

char* thread_workspace(size_t bytes) {
    static thread_local Workspace workspace;
    return workspace.get(bytes);
}

int sparse_ops_best_level() {
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

int sparse_ops_default_level() {
    int best = sparse_ops_best_level();
#if SPARSE_OPS_LEVELS > 3
    // Intel's multiply pairs of bfloat16 at half of AMD's rate: 1.4 to 1.7 times as long as widened to float32.
    if (best == 3 && __builtin_cpu_is("intel")) return 2;
#endif
    return best;
}

const char* sparse_ops_product_variant(int level, bool half, int64_t block, int64_t number) {
    const ProductVariant* variant = product_level(level, half, block).product(block, half, (int)number);
    return variant ? variant->name : nullptr;
}

int64_t sparse_ops_default_variant(int level, bool half, int64_t block, int64_t n_in) {
    return default_variant(product_level(level, half, block), half, block, n_in);
}

const char* sparse_ops_gradient_variant(int64_t block, int64_t number) {
    const GradientVariant* variant = gradient_variant(block, (int)number);
    return variant ? variant->name : nullptr;
}

int sparse_ops_product(const ProductCall* call) { return call->tokens == 0 ? 0 : status_of(product, *call); }

int sparse_ops_gradient(const GradientCall* call) { return status_of(gradient, *call); }

int sparse_ops_attention(const AttentionCall* call) { return status_of(attention, *call); }

int sparse_ops_half_round(const HalfRoundCall* call) { return status_of(half_round, *call); }

int sparse_ops_half_products(const HalfProductsCall* call) { return status_of(half_products, *call); }

int sparse_ops_add_norm(const AddNormCall* call) { return status_of(add_norm, *call); }

int sparse_ops_add_norm_gradient(const AddNormGradientCall* call) { return status_of(add_norm_gradient, *call); }

int sparse_ops_cross_entropy(const CrossEntropyCall* call) { return status_of(cross_entropy, *call); }
