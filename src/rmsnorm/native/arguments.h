// The tensors that a call was given, from Python or from other compiled modules.
#pragma once

#include <optional>
#include <utility>

#include "layout.h"

namespace rmsnorm {

// An argument that must be a tensor, and one that may be absent. Only call_with_views reads their views.
class RequiredArgument {
 public:
  explicit RequiredArgument(std::optional<View> view) : view_(std::move(view)) {}

 private:
  template <class F, class... A>
  friend bool call_with_views(F f, const A&... arguments);
  bool was_read() const { return view_.has_value(); }
  const View& view() const { return *view_; }
  std::optional<View> view_;
};
class OptionalArgument {
 public:
  OptionalArgument(bool given, std::optional<View> view) : given_(given), view_(std::move(view)) {}

 private:
  template <class F, class... A>
  friend bool call_with_views(F f, const A&... arguments);
  bool was_read() const { return !given_ || view_; }
  const View* view() const { return view_ ? &*view_ : nullptr; }
  bool given_;
  std::optional<View> view_;
};

// f(views...) if every argument could be read, else false. f takes a reference for a RequiredArgument, and a pointer
// for an OptionalArgument, which is null if absent. It returns whether it serves them.
template <class F, class... A>
bool call_with_views(F f, const A&... arguments) {
  return (arguments.was_read() && ...) && f(arguments.view()...);
}

}  // namespace rmsnorm
