// Exponentials of attention and of the masked-LM loss, as powers of two.
#pragma once
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr float kLog2e = 1.44269504f;

// 2^x for x <= 0, to about one unit in the last place; NaN where x is one. Below 2^-126, where slow numbers begin,
// it is off by less than that, and 0 from 2^-127 on: there the exponent's bits meet 1 exactly. The polynomial is within
// 1.9e-9 of 2^r, relatively, for |r| <= 1/2 (least squares, weighted until even).
INLINE V power_of_two(V x) {
    const V least = broadcast(-127.0f);
    x = least > x ? least : x;
    const V shifted = x + 12582912.0f;  // no bits are left behind the point
    const V r = x - (shifted - 12582912.0f);
    V p = broadcast(0.000153458124f);
    p = p * r + 0.00133999309f;
    p = p * r + 0.00961848907f;
    p = p * r + 0.0555032864f;
    p = p * r + 0.240226462f;
    p = p * r + 0.693147182f;
    p = p * r + 1.0f;
    return (V)((I)p + ((I)shifted << 23)) + (x - x);  // the sum of a NaN's bits may be those of a number
}

}  // namespace SPARSE_OPS_LEVEL
