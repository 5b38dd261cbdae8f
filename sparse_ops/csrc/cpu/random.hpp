// Random bits that follow from a key and a place alone, so that threads and levels, and another pass over the same
// places, draw the same.
#pragma once
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

// Of each place, the upper bits being the better ones: Wellons' lowbias32 with the second half of the key between its
// two multiplications, and without its last step, which changes the lower bits alone.
INLINE U random_bits(U place, uint32_t low, uint32_t high) {
    U x = place + low;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x ^= high;
    return (x ^ (x >> 15)) * 0x846ca68bu;
}

template <size_t... J>
INLINE U counted_from(uint32_t first, std::index_sequence<J...>) {
    return first + U{(uint32_t)J...};
}
INLINE U counted_from(uint32_t first) { return counted_from(first, Lanes{}); }

}  // namespace SPARSE_OPS_LEVEL
