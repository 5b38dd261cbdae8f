// Random bits that follow from a key and a place alone, so that threads, levels and sparse_ops/random_bits.py draw the
// same, and a backward pass draws again what its forward pass drew.
#pragma once
#include "api.hpp"
#include "vec.hpp"

namespace SPARSE_OPS_LEVEL {

// 32 of them for each place: Wellons' lowbias32 with the second half of the key between its two multiplications.
INLINE U random_bits(U place, const RandomKey& key) {
    U x = place + key.low;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x ^= key.high;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

template <size_t... J>
INLINE U counted_from(uint32_t first, std::index_sequence<J...>) {
    return first + U{(uint32_t)J...};
}
INLINE U counted_from(uint32_t first) { return counted_from(first, Lanes{}); }

}  // namespace SPARSE_OPS_LEVEL
