#include "register.hpp"

PYBIND11_MODULE(_native, module) {
    module.doc() = "The compiled core of ecrec; documented in _native.pyi.";
    module.attr("__version__") = ECREC_VERSION;
    ecrec::bindings::register_codec(module);
    ecrec::bindings::register_store(module);
    ecrec::bindings::register_batch(module);
    ecrec::bindings::register_frames(module);
    ecrec::bindings::register_files(module);
}
