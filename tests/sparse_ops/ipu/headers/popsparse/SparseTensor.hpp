#pragma once

#include <poplar/Tensor.hpp>

namespace popsparse::dynamic {

class SparseTensor {
public:
    SparseTensor(const poplar::Tensor& metaInfo, const poplar::Tensor& nzValues) : meta_(metaInfo), nz_(nzValues) {}
    const poplar::Tensor& getMetaInfoTensor() const { return meta_; }
    const poplar::Tensor& getNzValuesTensor() const { return nz_; }

private:
    poplar::Tensor meta_, nz_;
};

}  // namespace popsparse::dynamic
