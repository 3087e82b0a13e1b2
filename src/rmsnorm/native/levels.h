// The instruction-set levels, and which of them the processor runs.
#pragma once

namespace rmsnorm {

struct Level {
  const char *name, *module;
};
#if defined(__x86_64__)
constexpr Level LEVELS[] = {{"x86-64", "_baseline"}, {"x86-64-v3", "_v3"}, {"x86-64-v4", "_v4"}};  // best last
#else
constexpr Level LEVELS[] = {{"baseline", "_baseline"}};
#endif

// The number of LEVELS that the processor and the operating system, which must save wide registers, support.
inline int supported_levels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? 3 : v3 ? 2 : 1;
#else
  return 1;
#endif
}

}  // namespace rmsnorm
