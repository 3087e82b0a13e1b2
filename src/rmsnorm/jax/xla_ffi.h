// The part of XLA's foreign function interface (its C ABI, version 0.1 to 0.3) that handlers.cpp uses.
//
// Declared here as DLPack's ABI is in native/python_tensors.h, so that a wheel built without jaxlib can serve JAX too.
// tests/jax/test_handlers.py compares every size, offset and number with jaxlib's own header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rmsnorm::xla_ffi {

constexpr int MAJOR = 0;

struct Extension {
  size_t struct_size;
  int type;
  Extension* next;
};
constexpr int METADATA = 1;

struct Version {
  size_t struct_size;
  Extension* extension_start;
  int major_version, minor_version;
};

struct Metadata {  // later versions have more members, which need not be written
  size_t struct_size;
  Version api_version;
  uint32_t traits;
};
struct MetadataExtension {
  Extension extension_base;
  Metadata* metadata;
};

struct Error;
struct ErrorArguments {
  size_t struct_size;
  Extension* extension_start;
  const char* message;
  int errc;
};
constexpr int INVALID_ARGUMENT = 3, RESOURCE_EXHAUSTED = 8, INTERNAL = 13;

struct Api {  // more functions follow
  size_t struct_size;
  Extension* extension_start;
  Version api_version;
  const void* internal_api;
  Error* (*create_error)(ErrorArguments*);
};

constexpr int F16 = 10, F32 = 11, F64 = 12, BF16 = 16, S64 = 5;
struct Buffer {
  size_t struct_size;
  Extension* extension_start;
  int dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};
struct Scalar {
  int dtype;
  void* value;
};
struct Text {
  const char* ptr;
  size_t len;
};

constexpr int BUFFER = 1, SCALAR = 3;
struct Buffers {  // arguments, or results
  size_t struct_size;
  Extension* extension_start;
  int64_t size;
  int* types;
  void** items;
};
struct Attributes {
  size_t struct_size;
  Extension* extension_start;
  int64_t size;
  int* types;
  Text** names;
  void** items;
};

struct CallFrame {
  size_t struct_size;
  Extension* extension_start;
  const Api* api;
  void* context;
  int stage;
  Buffers arguments, results;
  Attributes attributes;
};

}  // namespace rmsnorm::xla_ffi
