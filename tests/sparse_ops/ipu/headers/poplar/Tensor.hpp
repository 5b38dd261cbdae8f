// A tensor with its values: a product is computed when it is asked for. What carries bits holds them as whole numbers.
#pragma once

#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include <poplar/Type.hpp>

namespace poplar {

class Tensor {
public:
    Tensor() : Tensor(FLOAT, {0}, {}) {}
    Tensor(Type type, std::vector<std::size_t> shape, std::vector<double> values)
        : type_(type), shape_(std::move(shape)), values_(std::move(values)) {}

    Type elementType() const { return type_; }
    std::vector<std::size_t> shape() const { return shape_; }
    std::size_t numElements() const {
        return std::accumulate(shape_.begin(), shape_.end(), std::size_t{1}, std::multiplies<std::size_t>());
    }
    Tensor reinterpret(const Type& type) const {
        if (type.bytes() != type_.bytes()) {
            throw std::runtime_error("reinterpret: " + type_.toString() + " as " + type.toString());
        }
        return Tensor(type, shape_, values_);
    }
    const std::vector<double>& values() const { return values_; }  // not Poplar's

private:
    Type type_;
    std::vector<std::size_t> shape_;
    std::vector<double> values_;
};

}  // namespace poplar
