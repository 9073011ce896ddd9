// The optimizers of a store: what each is told, what it keeps of a row, and the loop that takes its steps. One entry
// each; Python reads the list too (`_native.optimizers`), for what it checks and for the tensors of checkpoints.
#pragma once

#include <array>
#include <cstddef>

#include "kernels/operations.hpp"

namespace ecrec {

inline constexpr std::size_t hyper_max = 4;
inline constexpr std::size_t state_parts_max = 3;

// A part of what an optimizer keeps of a row: a float for each weight, and so many numbers besides.
struct StatePart {
    const char* name = nullptr;  // of the tensor in a checkpoint
    bool per_weight = false;
    std::size_t floats = 0;
    std::size_t doubles = 0;

    constexpr std::size_t floats_in(std::size_t dim) const { return (per_weight ? dim : 0) + floats + 2 * doubles; }
};

struct Optimizer {
    const char* name;
    std::array<const char*, hyper_max> hyper;        // as many as are not null; the first is the learning rate
    std::array<StatePart, state_parts_max> state{};  // in the order of a record, behind the weights
    void (*Operations::*step)(const Steps&);
    bool sets_state = false;       // the first part begins at init_state; all else begins at zero
    bool divides_by_rate = false;  // a learning rate of zero is none
    bool corrects_bias = false;  // hyper 1 and 2 are betas, kept as 1 - beta; the last part of the state has 1 - beta^t
    // Bytes: where a delta that is written with non-temporal stores begins and ends (Steps::streams).
    std::size_t alignment = 64;

    constexpr std::size_t state_floats(std::size_t dim) const {
        std::size_t floats = 0;
        for (const StatePart& part : state) floats += part.floats_in(dim);
        return floats;
    }
    // Those that start at init_state; they are the first ones.
    constexpr std::size_t state_floats_set(std::size_t dim) const { return sets_state ? state[0].floats_in(dim) : 0; }
};

inline constexpr Optimizer optimizers[] = {
    {.name = "sgd", .hyper = {"lr"}, .step = &Operations::sgd},
    {.name = "momentum",
     .hyper = {"lr", "momentum"},
     .state = {{{.name = "momentum", .per_weight = true}}},
     .step = &Operations::momentum},
    {.name = "nesterov",
     .hyper = {"lr", "momentum"},
     .state = {{{.name = "momentum", .per_weight = true}}},
     .step = &Operations::nesterov},
    {.name = "adagrad",
     .hyper = {"lr", "eps"},
     .state = {{{.name = "sum", .per_weight = true}}},
     .step = &Operations::adagrad,
     .sets_state = true},
    {.name = "rowwise-adagrad",
     .hyper = {"lr", "eps"},
     .state = {{{.name = "sum", .floats = 1}}},
     .step = &Operations::rowwise_adagrad,
     .sets_state = true,
     .alignment = 16},
    {.name = "adam",
     .hyper = {"lr", "beta1", "beta2", "eps"},
     .state = {{{.name = "exp_avg", .per_weight = true},
                {.name = "exp_avg_sq", .per_weight = true},
                {.name = "bias_corrections", .doubles = 2}}},
     .step = &Operations::adam,
     .corrects_bias = true},
    {.name = "ftrl",
     .hyper = {"lr", "beta", "l1", "l2"},
     .state = {{{.name = "n", .per_weight = true}, {.name = "z", .per_weight = true}}},
     .step = &Operations::ftrl,
     .sets_state = true,
     .divides_by_rate = true},
};

}  // namespace ecrec
