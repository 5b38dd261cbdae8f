// LayerNorm(residual + dropout(x)) in one pass, and its backward pass: a row of features stays in L1 while its mean and
// variance are found and it is written. Which features are dropped follows from (key, place) alone (random.hpp).
#pragma once
#include "random.hpp"

namespace SPARSE_OPS_LEVEL {

// What dropout multiplies the features from `place` on with: 0, or what keeps the mean.
template <bool dropout>
INLINE V kept(const Dropout& d, int64_t place) {
    if constexpr (dropout) {
        const U drawn = random_bits(counted_from((uint32_t)place), d.key);
        return drawn >= d.threshold ? broadcast(d.scale) : V{};
    } else {
        return broadcast(1.0f);
    }
}

template <bool dropout>
static void add_norm_rows(const AddNormCall& call, int64_t first, int64_t last) {
    const int64_t n = call.features;
    const float share = 1.0f / (float)n;
    const bool past_caches =
        goes_past_caches(call.y, n, call.tokens * n) && goes_past_caches(call.sum, n, call.tokens * n);
    float* sum = (float*)thread_workspace(n * sizeof(float));  // of a row, in L1
    for (int64_t row = first; row < last; ++row) {
        const float *x = call.x + row * n, *residual = call.residual + row * n;
        float *kept_sum = call.sum + row * n, *y = call.y + row * n;
        V total = {}, squares = {};
        for (int64_t j = 0; j < n; j += W) {
            V s = load(residual + j) + kept<dropout>(call.dropout, row * n + j) * load(x + j);
            store(sum + j, s);
            total += s;
        }
        const float mean = sum_of(total) * share;
        for (int64_t j = 0; j < n; j += W) {
            V centred = load(sum + j) - mean;
            squares += centred * centred;
        }
        const float variance = sum_of(squares) * share;
        // Infinite where squares overflow: 0 would hide a run that diverges behind the bias.
        const float scale = variance <= __FLT_MAX__ ? 1.0f / __builtin_sqrtf(variance + call.eps) : __builtin_nanf("");
        for (int64_t j = 0; j < n; j += W) {
            const V s = load(sum + j);
            put(kept_sum + j, s, past_caches);
            put(y + j, (s - mean) * scale * load(call.weight + j) + load(call.bias + j), past_caches);
        }
        call.statistics[2 * row] = mean, call.statistics[2 * row + 1] = scale;
    }
    past_caches_done();
}

static void add_norm(const AddNormCall& call, int64_t first, int64_t last) {
    call.dropout.threshold ? add_norm_rows<true>(call, first, last) : add_norm_rows<false>(call, first, last);
}

// dweight and dbias [features]: sums over these rows.
template <bool dropout>
static void add_norm_gradient_rows(const AddNormGradientCall& call, int64_t first, int64_t last, float* dweight,
                                   float* dbias) {
    const int64_t n = call.features;
    const float share = 1.0f / (float)n;
    const bool past_caches =
        goes_past_caches(call.dx, n, call.tokens * n) && goes_past_caches(call.dresidual, n, call.tokens * n);
    for (int64_t row = first; row < last; ++row) {
        const float *dy = call.dy + row * n, *sum = call.sum + row * n;
        float* dresidual = call.dresidual + row * n;
        const float mean = call.statistics[2 * row], scale = call.statistics[2 * row + 1];
        V total = {}, along = {};
        for (int64_t j = 0; j < n; j += W) {
            const V d = load(dy + j), normed = (load(sum + j) - mean) * scale, g = d * load(call.weight + j);
            store(dweight + j, load(dweight + j) + d * normed);
            store(dbias + j, load(dbias + j) + d);
            total += g;
            along += g * normed;
        }
        const float g_mean = sum_of(total) * share, g_along = sum_of(along) * share;
        for (int64_t j = 0; j < n; j += W) {
            const V normed = (load(sum + j) - mean) * scale;
            const V ds = (load(dy + j) * load(call.weight + j) - g_mean - normed * g_along) * scale;
            put(dresidual + j, ds, past_caches);
            if constexpr (dropout) put(call.dx + row * n + j, ds * kept<true>(call.dropout, row * n + j), past_caches);
        }
    }
    past_caches_done();
}

static void add_norm_gradient(const AddNormGradientCall& call, int64_t first, int64_t last, float* dweight,
                              float* dbias) {
    call.dropout.threshold ? add_norm_gradient_rows<true>(call, first, last, dweight, dbias)
                           : add_norm_gradient_rows<false>(call, first, last, dweight, dbias);
}

}  // namespace SPARSE_OPS_LEVEL
