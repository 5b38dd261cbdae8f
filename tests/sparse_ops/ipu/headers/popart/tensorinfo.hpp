#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <popart/error.hpp>

namespace popart {

using Shape = std::vector<std::int64_t>;
enum class DataType { FLOAT16, FLOAT };

class TensorInfo {
public:
    TensorInfo() = default;
    TensorInfo(DataType type, const Shape& shape) : type_(type), shape_(shape) {}
    DataType dataType() const { return type_; }
    const std::string& data_type() const {
        static const std::string names[] = {"FLOAT16", "FLOAT"};
        return names[static_cast<int>(type_)];
    }
    const Shape& shape() const { return shape_; }
    int rank() const { return static_cast<int>(shape_.size()); }
    std::int64_t nelms() const {
        std::int64_t elements = 1;
        for (const auto size : shape_) {
            elements *= size;
        }
        return elements;
    }
    bool operator==(const TensorInfo& other) const { return type_ == other.type_ && shape_ == other.shape_; }

private:
    DataType type_ = DataType::FLOAT;
    Shape shape_;
};

}  // namespace popart
