// The parts of the module, one function a file.
#pragma once

#include <pybind11/pybind11.h>

namespace ecrec::bindings {

void register_codec(pybind11::module_& module);
void register_store(pybind11::module_& module);
void register_batch(pybind11::module_& module);
void register_frames(pybind11::module_& module);
void register_files(pybind11::module_& module);

}  // namespace ecrec::bindings
