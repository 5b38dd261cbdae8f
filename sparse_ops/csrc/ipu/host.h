/* Host side of the sparse layer, called from Python through ctypes: sizes of a layer's device tensors, and
 * translation between slots (positions, and any number of arrays [blocks, b, b]) and the device layout.
 * Every function returns 0, or 1 after writing a message of at most error_size bytes (NUL included). */
#ifndef BLOCK_LINEAR_HOST_H
#define BLOCK_LINEAR_HOST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const char* layer; /* name for messages */
    int64_t in_features, out_features, block_size, blocks, batch;
    const char *available_memory_proportion, *meta_info_bucket_oversize_proportion, *partials_type;
    const char* data_type; /* "half" or "float" */
    const char* system;    /* poplar's system type, such as "ipu2" */
    int64_t tiles_per_ipu; /* 0: as the system has */
} block_linear_layer;

int64_t block_linear_abi(void);

int block_linear_sizes(const block_linear_layer* layer, int64_t* meta_info_size, int64_t* nz_size, char* error,
                       int64_t error_size);

/* rows, cols [blocks]: block positions of each slot, in any order. slots[a] [blocks, b, b] row-major and
 * encoded[a] [nz_size] for a in [0, arrays): padding becomes 0. */
int block_linear_encode(const block_linear_layer* layer, const int32_t* rows, const int32_t* cols, int64_t arrays,
                        const float* const* slots, uint16_t* meta_info, int64_t meta_info_size, float* const* encoded,
                        int64_t nz_size, char* error, int64_t error_size);

/* The way back; blocks come sorted by row, then column. Non-zero padding is an error. */
int block_linear_decode(const block_linear_layer* layer, const uint16_t* meta_info, int64_t meta_info_size,
                        int64_t arrays, const float* const* encoded, int64_t nz_size, int32_t* rows, int32_t* cols,
                        float* const* slots, char* error, int64_t error_size);

#ifdef __cplusplus
}
#endif
#endif
