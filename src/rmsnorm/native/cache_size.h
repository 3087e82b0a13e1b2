// The size of the processor's last cache.
#pragma once

#include <cstdint>
#include <cstdio>

namespace rmsnorm {

// Of the cache that a core shares with its neighbours. Not sysconf(_SC_LEVEL3_CACHE_SIZE): on AMD's processors glibc adds
// up all caches of the socket (320 MiB where each is 32).
inline int64_t last_cache_bytes() {
  constexpr int64_t UNKNOWN = 32 << 20;
#if defined(__linux__)
  std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "re");
  if (!file) return UNKNOWN;
  long kib = 0;
  char unit = 0;
  const int read = std::fscanf(file, "%ld%c", &kib, &unit);
  std::fclose(file);
  if (read == 2 && unit == 'K' && kib > 0) return int64_t(kib) << 10;
#endif
  return UNKNOWN;
}

}  // namespace rmsnorm
