#pragma once

// What stands between BEGIN_TARGET and END_TARGET is compiled for the named processor features. Every other header is
// included before: code that a region covers must not end up in inline functions that the linker may merge with those
// of other files, or a processor without the features would meet their instructions.

#define TARGET_PRAGMA(pragma) _Pragma(#pragma)
#if defined(__clang__)
#define BEGIN_TARGET(features) \
  TARGET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define BEGIN_TARGET(features) _Pragma("GCC push_options") TARGET_PRAGMA(GCC target(features))
#define END_TARGET _Pragma("GCC pop_options")
#endif
