// From the threads' sums of a gradient, which lie as the kernels made them, to the values in slot order.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

inline float from_half(uint16_t bits) {
    uint32_t u = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline uint16_t to_half(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// How a gradient's sums lie, see UnitOrder and DotOrder.
struct Sums {
    int64_t count;          // of blocks, and of places that hold none
    int64_t floats;         // of all blocks
    int64_t width;          // resident features that stand together
    int64_t stride;         // from one streamed feature of a block to the next
    const int32_t* slots;   // [count], -1 for no block
    const int64_t* places;  // [count] where each block's sums begin; null: one after the other
};

// Sum the threads' parts in their order and put blocks [first, last) where the slots are: [nnz, block, block] in the
// output's type. A part's sums begin at places[k] and are [block / WIDTH][block][WIDTH], rows `stride` apart.
// transposed: they hold every block as its transpose.
template <int WIDTH, class T, class Convert>
void scatter(const std::vector<const float*>& parts, const Sums& sums, int64_t first, int64_t last, int64_t block,
             bool transposed, T* out, Convert convert) {
    for (int64_t k = first; k < last; ++k) {
        if (sums.slots[k] < 0) continue;
        T* to = out + sums.slots[k] * block * block;
        int64_t at = sums.places ? sums.places[k] : k;
        for (int64_t column = 0; column < block; column += WIDTH)
            for (int64_t row = 0; row < block; ++row, at += sums.stride) {
                float sum[WIDTH];
                memcpy(sum, parts[0] + at, sizeof(sum));
                for (size_t p = 1; p < parts.size(); ++p)
                    for (int j = 0; j < WIDTH; ++j) sum[j] += parts[p][at + j];
                if (transposed)
                    for (int j = 0; j < WIDTH; ++j) to[(column + j) * block + row] = convert(sum[j]);
                else
                    for (int j = 0; j < WIDTH; ++j) to[row * block + column + j] = convert(sum[j]);
            }
    }
}

template <class T, class Convert>
void scatter_any(int64_t width, const std::vector<const float*>& parts, const Sums& sums, int64_t first, int64_t last,
                 int64_t block, bool transposed, T* out, Convert convert) {
    switch (width) {
        case 16: return scatter<16>(parts, sums, first, last, block, transposed, out, convert);
        case 8: return scatter<8>(parts, sums, first, last, block, transposed, out, convert);
        case 4: return scatter<4>(parts, sums, first, last, block, transposed, out, convert);
        default: return scatter<1>(parts, sums, first, last, block, transposed, out, convert);
    }
}
