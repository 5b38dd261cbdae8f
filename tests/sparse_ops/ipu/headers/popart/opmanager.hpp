#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <popart/op.hpp>

namespace popart {

class Attributes {
public:
    using Int = std::int64_t;
    using String = std::string;

    template <typename T>
    T getAttribute(const std::string& name) const {
        const auto found = values.find(name);
        if (found == values.end() || !std::holds_alternative<T>(found->second)) {
            throw error("no attribute {} of this type", name);
        }
        return std::get<T>(found->second);
    }

    std::map<std::string, std::variant<Int, String>> values;  // not PopART's
};

class OpDefinition {
public:
    struct Input {
        std::string name;
        std::vector<DataType> types;
    };
    using Output = Input;
    struct Attribute {
        std::string supportedValuesRegex;
    };
    using DataTypes = std::vector<DataType>;
    using Inputs = std::vector<Input>;
    using Outputs = std::vector<Output>;
    using Attributes = std::map<std::string, Attribute>;

    OpDefinition(Inputs in, Outputs out, Attributes known)
        : inputs(std::move(in)), outputs(std::move(out)), attributes(std::move(known)) {}

    Inputs inputs;
    Outputs outputs;
    Attributes attributes;
};

using OpDefinitions = std::map<OperatorIdentifier, OpDefinition>;

struct OpCreatorInfo {
    const OperatorIdentifier& opid;
    const Op::Settings& settings;
    const Attributes& attributes;
};

using OpFactory = std::function<std::unique_ptr<Op>(const OpCreatorInfo&)>;
inline std::map<OperatorIdentifier, std::pair<OpDefinition, OpFactory>> registeredOps;  // not PopART's

template <class OP>
class OpCreator {
public:
    OpCreator(const OpDefinitions& definitions, OpFactory factory, bool) {
        for (const auto& [id, definition] : definitions) {
            registeredOps.emplace(id, std::pair(definition, factory));
        }
    }
};

}  // namespace popart
