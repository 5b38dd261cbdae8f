/* Stands in for the native library in the tests of its ctypes binding: host.h's functions with a layout of a few lines.
 * nz is the slots in reverse order, then one block of padding; metaInfo is (row, col) of each, and 0xFFFF, 0xFFFF. */
#include <stdio.h>
#include <string.h>

#include "host.h"

static int fail(const block_linear_layer* layer, const char* what, char* error, int64_t size) {
    snprintf(error, (size_t)size, "sparse layer '%s': %s [%lld, %lld] b%lld batch %lld %s %s %s %s %s %lld",
             layer->layer, what, (long long)layer->out_features, (long long)layer->in_features,
             (long long)layer->block_size, (long long)layer->batch, layer->available_memory_proportion,
             layer->meta_info_bucket_oversize_proportion, layer->partials_type, layer->data_type, layer->system,
             (long long)layer->tiles_per_ipu);
    return 1;
}

int64_t block_linear_abi(void) { return FAKE_ABI; }

int block_linear_sizes(const block_linear_layer* layer, int64_t* meta_info_size, int64_t* nz_size, char* error,
                       int64_t error_size) {
    if (layer->block_size == 4) {
        return fail(layer, "cannot be planned", error, error_size);
    }
    *meta_info_size = 2 * (layer->blocks + 1);
    *nz_size = (layer->blocks + 1) * layer->block_size * layer->block_size;
    return 0;
}

int block_linear_encode(const block_linear_layer* layer, const int32_t* rows, const int32_t* cols, int64_t arrays,
                        const float* const* slots, uint16_t* meta_info, int64_t meta_info_size, float* const* encoded,
                        int64_t nz_size, char* error, int64_t error_size) {
    const int64_t block = layer->block_size * layer->block_size, n = layer->blocks;
    if (meta_info_size != 2 * (n + 1) || nz_size != (n + 1) * block) {
        return fail(layer, "wrong sizes", error, error_size);
    }
    for (int64_t k = 0; k < n; ++k) {
        meta_info[2 * k] = (uint16_t)rows[n - 1 - k];
        meta_info[2 * k + 1] = (uint16_t)cols[n - 1 - k];
        for (int64_t a = 0; a < arrays; ++a) {
            memcpy(encoded[a] + k * block, slots[a] + (n - 1 - k) * block, (size_t)block * sizeof(float));
        }
    }
    meta_info[2 * n] = meta_info[2 * n + 1] = 0xFFFF;
    for (int64_t a = 0; a < arrays; ++a) {
        memset(encoded[a] + n * block, 0, (size_t)block * sizeof(float));
    }
    return 0;
}

int block_linear_decode(const block_linear_layer* layer, const uint16_t* meta_info, int64_t meta_info_size,
                        int64_t arrays, const float* const* encoded, int64_t nz_size, int32_t* rows, int32_t* cols,
                        float* const* slots, char* error, int64_t error_size) {
    const int64_t block = layer->block_size * layer->block_size, n = layer->blocks;
    if (meta_info_size != 2 * (n + 1) || nz_size != (n + 1) * block || meta_info[2 * n] != 0xFFFF) {
        return fail(layer, "wrong metaInfo", error, error_size);
    }
    for (int64_t k = 0; k < n; ++k) {
        rows[k] = meta_info[2 * k];
        cols[k] = meta_info[2 * k + 1];
        for (int64_t a = 0; a < arrays; ++a) {
            memcpy(slots[a] + k * block, encoded[a] + k * block, (size_t)block * sizeof(float));
        }
    }
    return 0;
}
