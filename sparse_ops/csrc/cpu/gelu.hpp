// GELU and its derivative together: both need the normal distribution function and its density, which take the time.
#pragma once
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

// exp(-z) for z >= 0 (NaN where z is one), to about one unit in the last place; never below 2e-35, so that what is
// multiplied with it does not become a subnormal number, which would take a hundred times as long.
INLINE V exp_minus(V z) {
    V x = -(z > 80.0f ? broadcast(80.0f) : z);
    V n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounds: no bits are left behind the point at 1.5 * 2^23
    V r = x - n * 0.693359375f - n * -2.12194440e-4f;     // ln 2 in two parts, of which the first is exact
    V p = broadcast(1.0f / 720);
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (V)((I)p + (__builtin_convertvector(n, I) << 23));
}

// 1 / x of x >= 1, to one unit in the last place; 1e-30 from 1e30 on, where GELU has no use for it.
INLINE V reciprocal(V x) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    x = (V)_mm512_min_ps(_mm512_set1_ps(1e30f), (__m512)x);  // infinity times 0 would be NaN below; NaN stays
    V r = (V)_mm512_rcp14_ps((__m512)x);  // to 14 bits, which a step of Newton's doubles; a division takes 16 cycles
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

// y = x Phi(x) and slope = Phi(x) + x phi(x), Phi the normal distribution function. Phi(-|x|) is off by at most 7.5e-8
// (Abramowitz and Stegun, 7.1.26) and rounding.
INLINE void gelu(V x, V& y, V& slope) {
    V a = x < 0.0f ? -x : x;
    V density = exp_minus(0.5f * x * x);
    V t = reciprocal(1.0f + 0.231641900f * a);  // 0.3275911 / sqrt(2)
    V p = broadcast(0.5f * 1.061405429f);
    p = p * t + 0.5f * -1.453152027f;
    p = p * t + 0.5f * 1.421413741f;
    p = p * t + 0.5f * -0.284496736f;
    p = p * t + 0.5f * 0.254829592f;
    V tail = p * t * density;
    V phi = x < 0.0f ? tail : 1.0f - tail;
    y = x * phi;
    const V along = a < 1e6f ? x * density : V{};  // the density's floor would count beside a large x
    slope = phi + along * 0.398942280f;
}

}  // namespace SPARSE_OPS_LEVEL
