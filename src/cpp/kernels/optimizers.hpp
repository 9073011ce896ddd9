// The optimizers: what each is told, and what it keeps of a row. One entry each, to which the kernels have a step of the
// same name (optimizers.inl). The store goes by this list, and Python reads it (`_native.optimizers`): for what it checks,
// for the tensors of checkpoints and for the options of `ecrec train`.
#pragma once

#include <array>
#include <cstddef>

namespace ecrec {

inline constexpr std::size_t hyper_max = 4;
inline constexpr std::size_t state_parts_max = 3;

// Also the argument of a template: step<"adam">.
struct OptimizerName {
    template <std::size_t size>
    consteval OptimizerName(const char (&literal)[size]) {
        static_assert(size <= sizeof text);
        for (std::size_t i = 0; i < size; ++i) text[i] = literal[i];
    }

    char text[24] = {};
};

struct Hyper {
    const char* name = nullptr;
    bool from_one = false;  // kept as 1 - what is given, rounded after that: 1 - float(0.999) is 1e-5 off
};

// A part of what an optimizer keeps of a row: a float for each weight, and so many numbers besides.
struct StatePart {
    const char* name = nullptr;  // of the tensor in a checkpoint
    bool per_weight = false;
    std::size_t floats = 0;
    std::size_t doubles = 0;

    constexpr std::size_t floats_in(std::size_t dim) const { return (per_weight ? dim : 0) + floats + 2 * doubles; }
};

// What `ecrec train` takes where no learning rate is given; without one for the dense part it is not offered there.
struct UsualRates {
    double tables;
    double dense = 0;
};

struct Optimizer {
    OptimizerName name;
    std::array<Hyper, hyper_max> hyper;              // as many as have a name; the first is the learning rate
    std::array<StatePart, state_parts_max> state{};  // in the order of a record, behind the weights
    UsualRates usual_rates;
    bool sets_state = false;       // the first part begins at init_state; all else begins at zero
    bool divides_by_rate = false;  // a learning rate of zero is none
    bool corrects_bias = false;    // hyper 1 and 2 are betas; the last part of the state has 1 - beta^t
    // Bytes: where a delta that is written with non-temporal stores begins and ends (Steps::streams).
    std::size_t alignment = 64;

    constexpr std::size_t hyper_count() const {
        std::size_t count = 0;
        while (count < hyper_max && hyper[count].name != nullptr) ++count;
        return count;
    }
    constexpr std::size_t state_floats(std::size_t dim) const {
        std::size_t floats = 0;
        for (const StatePart& part : state) floats += part.floats_in(dim);
        return floats;
    }
    // Those that start at init_state; they are the first ones.
    constexpr std::size_t state_floats_set(std::size_t dim) const { return sets_state ? state[0].floats_in(dim) : 0; }
};

inline constexpr Optimizer optimizers[] = {
    {.name = "sgd", .hyper = {{{"lr"}}}, .usual_rates = {20.0, 0.1}},
    {.name = "momentum",
     .hyper = {{{"lr"}, {"momentum"}}},
     .state = {{{.name = "momentum", .per_weight = true}}},
     .usual_rates = {2.0, 0.01}},
    {.name = "nesterov",
     .hyper = {{{"lr"}, {"momentum"}}},
     .state = {{{.name = "momentum", .per_weight = true}}},
     .usual_rates = {2.0, 0.01}},
    {.name = "adagrad",
     .hyper = {{{"lr"}, {"eps"}}},
     .state = {{{.name = "sum", .per_weight = true}}},
     .usual_rates = {0.02, 0.005},
     .sets_state = true},
    {.name = "rowwise-adagrad",  // a mean over a row has no meaning for the rows that a dense part is cut into
     .hyper = {{{"lr"}, {"eps"}}},
     .state = {{{.name = "sum", .floats = 1}}},
     .usual_rates = {0.02},
     .sets_state = true,
     .alignment = 16},
    {.name = "adam",
     .hyper = {{{"lr"}, {"beta1", true}, {"beta2", true}, {"eps"}}},
     .state = {{{.name = "exp_avg", .per_weight = true},
                {.name = "exp_avg_sq", .per_weight = true},
                {.name = "bias_corrections", .doubles = 2}}},
     .usual_rates = {0.003, 0.0003},
     .corrects_bias = true},
    {.name = "rmsprop",
     .hyper = {{{"lr"}, {"alpha", true}, {"eps"}}},
     .state = {{{.name = "square_avg", .per_weight = true}}},
     .usual_rates = {0.001, 0.0003}},
    {.name = "ftrl",  // it would forget the first values of a dense part
     .hyper = {{{"lr"}, {"beta"}, {"l1"}, {"l2"}}},
     .state = {{{.name = "n", .per_weight = true}, {.name = "z", .per_weight = true}}},
     .usual_rates = {20.0},
     .sets_state = true,
     .divides_by_rate = true},
};

inline constexpr std::size_t optimizer_count = sizeof optimizers / sizeof optimizers[0];

}  // namespace ecrec
