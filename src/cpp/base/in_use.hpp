// Objects that one thread at a time may use: a second one gets an error, not a race.
#pragma once

#include <atomic>

#include "base/error.hpp"

namespace ecrec {

class InUse {
public:
    bool enter() { return !taken_.test_and_set(std::memory_order_acquire); }
    void leave() { taken_.clear(std::memory_order_release); }

private:
    std::atomic_flag taken_;
};

// Holds an object as long as it lives. Not to be nested: a thread that holds an object is refused, too.
class Use {
public:
    Use(InUse& object, const char* name) : object_(object) {
        if (!object_.enter()) {
            refuse(ErrorKind::state, name, ": in use by another thread; only one at a time may call it");
        }
    }
    ~Use() { object_.leave(); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

private:
    InUse& object_;
};

}  // namespace ecrec
