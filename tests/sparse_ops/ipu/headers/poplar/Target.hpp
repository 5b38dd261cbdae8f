#pragma once

#include <string>

#include <poplar/OptionFlags.hpp>
#include <poplar/Type.hpp>

namespace poplar {

class Target {
public:
    static Target createIPUTarget(unsigned ipus, const std::string& system) {
        return createIPUTarget(ipus, 1472, system);
    }
    static Target createIPUTarget(unsigned, unsigned tiles, const std::string& system) {
        Target made;
        made.tiles_ = tiles;
        made.system_ = system;
        return made;
    }
    unsigned getTilesPerIPU() const { return tiles_; }
    unsigned getBytesPerTile() const { return 624 * 1024; }
    std::string getTargetArchString() const { return system_; }
    bool operator==(const Target& other) const { return tiles_ == other.tiles_ && system_ == other.system_; }

private:
    unsigned tiles_ = 0;
    std::string system_;
};

}  // namespace poplar
