// Opens and closes a region whose functions may use more than the baseline's instructions. Open it after
// every include: an inline function of a header compiled in the region could be the copy that the linker
// keeps for all.
#pragma once

#define ECREC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ECREC_TARGET_BEGIN(features) \
    ECREC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ECREC_TARGET_END ECREC_PRAGMA(clang attribute pop)
#else
#define ECREC_TARGET_BEGIN(features) ECREC_PRAGMA(GCC push_options) ECREC_PRAGMA(GCC target(features))
#define ECREC_TARGET_END ECREC_PRAGMA(GCC pop_options)
#endif
